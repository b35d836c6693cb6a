"""Sampling that can be repeated while other threads sample, too."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWING = (torch.multinomial, torch.Tensor.multinomial)


class OwnRandom(TorchFunctionMode):
    """Within its `with` block, tokens that this thread samples come from generators of its own.

    transformers samples from torch's global generator, which all threads of a process share. What
    is drawn here is what `transformers.set_seed(seed)` and a single thread would have drawn. A
    later block of the same object goes on in the sequence; blocks must not be nested.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in _DRAWING and options.get("generator") is None:
            weights = args[0] if args else options["input"]
            options["generator"] = self._generator(weights.device)
        return func(*args, **options)

    def _generator(self, device: torch.device) -> torch.Generator:
        found = self._generators.get(device)
        if found is None:
            found = torch.Generator(device=device).manual_seed(self._seed)
            self._generators[device] = found
        return found
