"""A slice proves, when it is loaded, that packed passes compute what the model computes.

Recurrent layers never come through the attention interface and would mix sessions silently; some
kinds of RoPE look at the longest position of a pass. So nothing is assumed: ragged sessions are
run packed and compared with the model's own attention over each of them alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from swarm.errors import NotServedError
from swarm.models.packed_attention import KVStore, PassRow
from swarm.models.row_state import RowState

Run = Callable[[torch.Tensor, torch.Tensor, Sequence[PassRow], KVStore], torch.Tensor]
"""`(hidden [T, H], position_ids [T], rows, kv) -> [T, H]`, in one pass."""
Reference = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`(hidden [T, H], position_ids [T]) -> [T, H]`: the model's own attention over one sequence."""

_STEPS = ((5, 1, 3), (1, 2, 1), (1, 1, 4))
"""New tokens of three sessions in three passes."""
_REWIND_TO = 2
"""A slot to which each of them is rewound then."""


class GrowingStore:
    """The plainest `KVStore`: a tensor per row and layer that is copied at each write.

    A row is any hashable value. For proofs and tests.
    """

    def __init__(self) -> None:
        self.tensors: dict[tuple[object, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._states: dict[object, RowState] = {}

    def begin(self, rows: Sequence[PassRow]) -> "_GrowingPass":
        return _GrowingPass(self, rows)

    def state(self, row: object) -> RowState:
        return self._states.setdefault(row, RowState())

    def shapes(self, layers: int) -> list[tuple[int, int, int]]:
        """`(heads, k_dim, v_dim)` of layers `0 .. layers - 1`; `(1, 0, 0)` of one without K/V."""
        found = {layer: pair for (_, layer), pair in self.tensors.items()}
        shapes = [(1, 0, 0)] * layers
        for layer, (key, value) in found.items():
            shapes[layer] = (key.shape[0], key.shape[2], value.shape[2])
        return shapes


@dataclass
class _GrowingPass:
    store: GrowingStore
    rows: Sequence[PassRow]

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        first = 0
        for part in self.rows:
            new = slice(first, first + part.count)
            pair = (key[:, new], value[:, new])
            held = self.store.tensors.get((part.row, layer))
            if held is not None:
                pair = (
                    torch.cat((held[0][:, : part.start], pair[0]), 1),
                    torch.cat((held[1][:, : part.start], pair[1]), 1),
                )
            self.store.tensors[part.row, layer] = pair
            first += part.count

    def read(self, layer: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.rows[index]
        keys, values = self.store.tensors[row.row, layer]
        return keys[:, : row.start + row.count], values[:, : row.start + row.count]


def tolerance(dtype: torch.dtype) -> float:
    """Largest difference allowed, as a share of the largest value."""
    return 1e-4 if dtype == torch.float32 else 0.05


def prove(
    run: Run,
    reference: Reference,
    hidden_size: int,
    like: torch.Tensor,
    allowed: float | None = None,
) -> None:
    """Raises `NotServedError` unless passes equal `reference`. `like`: dtype, device; `allowed`:
    another `tolerance` than that of the dtype.

    Several sessions grow in turn, by one token and by several, and then each is rewound.
    """
    lengths = [sum(counts) for counts in zip(*_STEPS, strict=True)]
    inputs = [_noise(length, hidden_size, seed, like) for seed, length in enumerate(lengths)]
    kv = GrowingStore()

    def grow(starts: Sequence[int], counts: Sequence[int]) -> Sequence[torch.Tensor]:
        spans = list(zip(starts, counts, strict=True))
        rows = [PassRow(row, start, count) for row, (start, count) in enumerate(spans)]
        parts = [inputs[row][start : start + count] for row, (start, count) in enumerate(spans)]
        places = [torch.arange(start, start + count) for start, count in spans]
        output = run(torch.cat(parts), torch.cat(places).to(like.device), rows, kv)
        return torch.split(output, list(counts))

    starts = [0] * len(lengths)
    answers: list[list[torch.Tensor]] = [[] for _ in lengths]
    for counts in _STEPS:
        for row, part in enumerate(grow(starts, counts)):
            answers[row].append(part)
            starts[row] += counts[row]
    again = grow([_REWIND_TO] * len(lengths), [length - _REWIND_TO for length in lengths])
    for row, length in enumerate(lengths):
        expected = reference(inputs[row], torch.arange(length, device=like.device))
        if not _close(torch.cat(answers[row]), expected, allowed):
            raise NotServedError("tokens that come in several passes change the results")
        if not _close(again[row], expected[_REWIND_TO:], allowed):
            raise NotServedError("a session that was rewound goes on with other results")


def sessions_are_independent(
    run: Run,
    hidden_size: int,
    like: torch.Tensor,
    far_position: int,
    allowed: float | None = None,
) -> bool:
    """Whether a session's result stays when one at `far_position` joins its pass."""
    near, far = _noise(4, hidden_size, 1, like), _noise(2, hidden_size, 2, like)
    near_places = torch.arange(4, device=like.device)
    far_places = torch.arange(far_position, far_position + 2, device=like.device)
    alone = run(near, near_places, [PassRow(0, 0, 4)], GrowingStore())
    rows = [PassRow(0, 0, 4), PassRow(1, 0, 2)]
    places = torch.cat((near_places, far_places))
    together = run(torch.cat((near, far)), places, rows, GrowingStore())
    return _close(together[:4], alone, allowed)


def _close(found: torch.Tensor, expected: torch.Tensor, allowed: float | None) -> bool:
    share = tolerance(expected.dtype) if allowed is None else allowed
    largest = float((found.float() - expected.float()).abs().max())
    return largest <= share * max(1e-6, float(expected.float().abs().max()))


def _noise(tokens: int, hidden_size: int, seed: int, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, hidden_size, generator=generator).to(like)
