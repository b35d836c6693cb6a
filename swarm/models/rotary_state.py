"""What some kinds of RoPE remember from one pass to the next, and must not.

Dynamic RoPE keeps the frequencies of the longest position that it has seen. Sessions share the
module, so a stranger's far position would change what all others compute.
"""

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

_GROWN = "max_seq_len_cached"


class RotaryState:
    """The state of a model's rotary modules as they were made; taken once it is on its device."""

    def __init__(self, model: nn.Module) -> None:
        self._fresh: list[tuple[nn.Module, dict[str, Any], dict[str, torch.Tensor | None]]] = [
            (module, _remembered(module), dict(module._buffers))
            for module in model.modules()
            if hasattr(module, _GROWN) and _is_dynamic(module)
        ]

    def reset(self) -> None:
        """As if no pass had run yet; cheap, and nothing for models without such modules."""
        for module, fresh, buffers in self._fresh:
            for name in _remembered(module).keys() - fresh.keys():
                delattr(module, name)
            vars(module).update(fresh)
            module._buffers.update(buffers)


def _is_dynamic(module: nn.Module) -> bool:
    kinds = getattr(module, "rope_type", "")
    return any(
        "dynamic" in kind for kind in (kinds.values() if isinstance(kinds, dict) else [kinds])
    )


def _remembered(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if name.endswith((_GROWN, "attention_scaling"))
    }


def looks_at_longest_position(config: PretrainedConfig) -> bool:
    """Whether a kind of RoPE turns all tokens of a pass by what its longest position is."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return any(kind.get("rope_type") in {"dynamic", "longrope"} for kind in kinds)
