"""How slices of a model are compared with it: the same logits, whatever way sessions grow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from architectures import draw
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from swarm.errors import NotServedError
from swarm.models.building import building_model
from swarm.models.checkpoint import open_checkpoint
from swarm.models.layer_list import find_layers
from swarm.models.packed_attention import PassRow
from swarm.models.shell import load_shell
from swarm.models.slice import BlockSlice
from swarm.server.kv_cache import PagedCache
from swarm.spans import SessionId, Span

TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the logits' standard deviation."""
MIN_GAP = 2e-5
"""Between the scores of the last expert that is chosen and of the next one."""

LENGTH = 44
"""Tokens of each of the two sessions: more than windows and original contexts."""


def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """`[rows, tokens, vocabulary]`, by the model's own plain attention and without a cache."""
    with torch.inference_mode():
        found: torch.Tensor = model(ids, use_cache=False).logits
    return found


class _Choices(TorchFunctionMode):
    """Watches every `topk`: how much less than the last one chosen the next one was."""

    least = float("inf")

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.topk, torch.Tensor.topk):
            scores, chosen = args[0], kwargs["k"] if kwargs and "k" in kwargs else args[1]
            if chosen < scores.shape[-1]:
                ordered = scores.detach().sort(-1, descending=True).values
                gaps = ordered[..., chosen - 1] - ordered[..., chosen]
                self.least = min(self.least, float(gaps.nan_to_num(torch.inf).min()))
        return func(*args, **(kwargs or {}))


def prompts_without_ties(model: PreTrainedModel) -> torch.Tensor:
    """`[2, LENGTH]` random ids with which no token's choice of experts hangs on rounding: for those
    there is no right answer."""
    for seed in range(1, 50):
        ids = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(seed))
        with _Choices() as choices:
            logits_of(model, ids)
        if choices.least > MIN_GAP:
            return ids
    raise AssertionError("all prompts have ties")


def least_effect(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """The least that dropping a block, or swapping it with the next, changes in the logits, in
    their standard deviations. Blocks that cannot stand elsewhere at all count as changed."""
    whole = logits_of(model, ids)
    name, layers = find_layers(model, model.config.num_hidden_layers)
    effects = []
    for broken in _broken(list(range(len(layers)))):
        model.set_submodule(name, nn.ModuleList([layers[index] for index in broken]))
        try:
            effects.append(float((logits_of(model, ids) - whole).abs().max() / whole.std()))
        except (RuntimeError, IndexError, KeyError, ValueError, AttributeError, TypeError):
            continue
    model.set_submodule(name, layers)
    return min(effects)


def _broken(whole: list[int]) -> list[list[int]]:
    swapped = [
        [*whole[:index], whole[index + 1], whole[index], *whole[index + 2 :]]
        for index in range(len(whole) - 1)
    ]
    return [[other for other in whole if other != index] for index in whole] + swapped


class Chain(nn.Module):
    """Slices one behind the other, as the blocks of a client's shell: each row is a session.

    `way` feeds the sessions: it calls `grow(counts)`, `stray(counts)` (tokens that nobody asked
    for) and `cut(lengths)` until all tokens have passed.
    """

    def __init__(self, slices: Sequence[BlockSlice]) -> None:
        super().__init__()
        self.slices = slices
        self.way: Callable[[Chain], None] = lambda chain: chain.grow(chain.left())

    def forward(
        self, hidden: torch.Tensor, *, position_ids: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        self._hidden, self._positions = hidden, position_ids
        self._answers = torch.full_like(hidden, torch.nan)
        self._names = [SessionId(bytes([row]) * 16) for row in range(len(hidden))]
        self._held = [0] * len(hidden)
        self._caches = []
        for each in self.slices:
            cache = PagedCache(each.kv_shapes, 1024, row_bytes=each.row_bytes, page_tokens=8)
            for name in self._names:
                cache.reserve(name, 1, hidden.shape[1])
            self._caches.append(cache)
        with torch.inference_mode():
            self.way(self)
        for cache in self._caches:
            cache.validate()
        return self._answers

    def left(self) -> list[int]:
        return [self._hidden.shape[1] - held for held in self._held]

    def grow(self, counts: Sequence[int]) -> None:
        """The next tokens of each session, in one pass."""
        spans = list(zip(self._held, counts, strict=True))
        rows = [
            self._hidden[row, start : start + count] for row, (start, count) in enumerate(spans)
        ]
        answers = torch.split(self._run(torch.cat(rows), counts), list(counts))
        for row, (start, count) in enumerate(spans):
            self._answers[row, start : start + count] = answers[row]

    def stray(self, counts: Sequence[int]) -> None:
        """Other tokens than those that are asked for."""
        self._run(torch.randn(sum(counts), self._hidden.shape[-1]), counts)

    def cut(self, lengths: Sequence[int]) -> None:
        for cache in self._caches:
            for name, length in zip(self._names, lengths, strict=True):
                cache.apply(name, None, [length])
        self._held = list(lengths)

    def _run(self, hidden: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        places = [
            self._positions[row, held : held + count]
            for row, (held, count) in enumerate(zip(self._held, counts, strict=True))
        ]
        for each, cache in zip(self.slices, self._caches, strict=True):
            rows = [
                PassRow(cache.row(name, 0), held, count, horizon=LENGTH - 1)
                for name, held, count in zip(self._names, self._held, counts, strict=True)
                if count
            ]
            hidden = each.forward(hidden, torch.cat(places), rows, cache)
        self._held = [held + count for held, count in zip(self._held, counts, strict=True)]
        return hidden


def _prefill(chain: Chain) -> None:
    chain.grow(chain.left())


def _chunked_prefill(chain: Chain) -> None:
    for counts in [(20, 1), (1, 30), (13, 2)]:
        chain.grow(counts)
    chain.grow(chain.left())


def _decode(chain: Chain) -> None:
    chain.grow((35, 37))
    while all(chain.left()):
        chain.grow((1, 1))
    chain.grow(chain.left())


def _rollback(chain: Chain) -> None:
    chain.grow((36, 33))
    chain.stray((4, 1))
    chain.cut((36, 33))
    for _ in range(3):
        chain.grow((1, 1))
    chain.stray((1, 3))
    chain.cut((35, 34))
    chain.grow((2, 5))
    chain.grow(chain.left())


WAYS: dict[str, Callable[[Chain], None]] = {
    "prefill": _prefill,
    "chunked prefill": _chunked_prefill,
    "cached decode": _decode,
    "rollback": _rollback,
}


@dataclass(frozen=True)
class Examined:
    """What a comparison has found out about an architecture."""

    architecture: str
    refused: str | None = None
    """Why it is not served."""
    packs: bool = False
    rewinds: str = ""
    alone_because: str | None = None
    differences: dict[str, float] | None = None
    """Largest of the logits, in their standard deviations, by way."""
    least_effect: float = 0.0


def examine(
    architecture: str, folder: Path, cuts: Sequence[int] = (2,), **changes: Any
) -> Examined:
    """Save a model, load slices of it that are cut at `cuts`, and compare them with it."""
    model = draw(architecture, **changes)
    ids = prompts_without_ties(model)
    expected = logits_of(model, ids)
    effect = least_effect(model, ids)
    with building_model():
        model.save_pretrained(folder)
    checkpoint = open_checkpoint(str(folder))
    edges = [0, *cuts, checkpoint.num_blocks]
    spans = [Span(start, end) for start, end in pairwise(edges)]
    try:
        slices = [BlockSlice.load(checkpoint, span) for span in spans]
        chain = Chain(slices)
        shell = load_shell(checkpoint, torch.float32, lambda _: chain)
    except NotServedError as refusal:
        return Examined(architecture, refused=str(refusal), least_effect=effect)
    differences = {}
    for name, way in WAYS.items():
        chain.way = way
        difference = (logits_of(shell, ids) - expected).abs().max() / expected.std()
        differences[name] = float(difference)
    return Examined(
        architecture,
        packs=all(each.packs_sessions for each in slices),
        rewinds=" ".join(sorted({each.rewinds for each in slices})),
        alone_because=next((each.alone_because for each in slices if each.alone_because), None),
        differences=differences,
        least_effect=effect,
    )
