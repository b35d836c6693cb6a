"""A slice proves, when it is loaded, that packed passes compute what the model computes.

Recurrent layers never come through the attention interface and would mix sessions silently; some
kinds of RoPE look at the longest position of a pass. So nothing is assumed: ragged sessions are
run packed and compared with the model's own attention over each of them alone.
"""

from collections import defaultdict
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

_STEPS = ((3, 1, 6), (1, 4, 1), (1, 1, 7), (1, 1, 1))
"""New tokens of three sessions in four passes."""
_REWIND_TO = 2
"""A slot to which each of them is rewound then."""
_TRIES = 3
"""With other random tokens each. A fault of the passes shows with any; but where two experts score
alike, rounding decides which one a token gets, and neither answer is wrong."""
_FLOAT32_SHARE = 1e-4
"""Largest difference of a whole slice in float32: 1,700 times its unit of rounding. Of 57 tiny
architectures a block takes up to 16 of them, a wrong one more than 10,000."""
_HALF_ROUNDINGS = 16
"""In bfloat16 and float16 for one block, in units of rounding. The same blocks take up to 6."""


@dataclass(frozen=True)
class Bar:
    """How close passes have to come to the model's own attention."""

    share: float
    """Largest difference of a token, as a share of the largest value of its session."""
    by_block: bool = False
    """Whether each block is proved by itself, on tokens of its own. What is rounded to a few bits
    differs more with every block, until only a model that is quite wrong would show. It also sends
    some tokens to other experts, so more than half of them have to come as close, of each kind."""


def bar_for(dtype: torch.dtype) -> Bar:
    """For blocks whose products are rounded to `dtype`."""
    if dtype == torch.float32:
        return Bar(_FLOAT32_SHARE)
    return Bar(_HALF_ROUNDINGS * torch.finfo(dtype).eps / 2, by_block=True)


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


def prove(run: Run, reference: Reference, hidden_size: int, like: torch.Tensor, bar: Bar) -> None:
    """Raises `NotServedError` unless passes equal `reference`. `like`: dtype, device.

    Several sessions grow in turn, by one token and by several, and then each is rewound.
    """
    for attempt in range(_TRIES):
        try:
            return _prove_once(run, reference, hidden_size, like, bar, attempt * len(_STEPS[0]))
        except NotServedError:
            if attempt == _TRIES - 1:
                raise
    return None


def _prove_once(
    run: Run, reference: Reference, hidden_size: int, like: torch.Tensor, bar: Bar, seed: int
) -> None:
    lengths = [sum(counts) for counts in zip(*_STEPS, strict=True)]
    inputs = [_noise(length, hidden_size, seed + row, like) for row, length in enumerate(lengths)]
    expected = [
        reference(given, torch.arange(len(given), device=like.device)).float() for given in inputs
    ]
    differences: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
    kv = GrowingStore()

    def grow(starts: Sequence[int], counts: Sequence[int], rewound: bool = False) -> None:
        spans = list(zip(starts, counts, strict=True))
        rows = [PassRow(row, start, count) for row, (start, count) in enumerate(spans)]
        parts = [inputs[row][start : start + count] for row, (start, count) in enumerate(spans)]
        places = [torch.arange(start, start + count) for start, count in spans]
        output = run(torch.cat(parts), torch.cat(places).to(like.device), rows, kv)
        for part, (start, count), whole in zip(
            torch.split(output, list(counts)), spans, expected, strict=True
        ):
            kind = "first" if not start else "one" if count == 1 else "several"
            differences["rewound" if rewound else kind].append(
                _shares(part, whole[start : start + count], whole)
            )

    starts = [0] * len(lengths)
    for counts in _STEPS:
        grow(starts, counts)
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
    grow([_REWIND_TO] * len(lengths), [length - _REWIND_TO for length in lengths], rewound=True)
    for kind, shares in differences.items():
        if not _clears(bar, torch.cat(shares)):
            raise NotServedError(
                "a session that was rewound goes on with other results"
                if kind == "rewound"
                else "tokens that come in several passes change the results"
            )


def sessions_are_independent(
    run: Run, hidden_size: int, like: torch.Tensor, far_position: int, bar: Bar
) -> bool:
    """Whether a session's result stays when one at `far_position` joins its pass."""
    near_places = torch.arange(4, device=like.device)
    far_places = torch.arange(far_position, far_position + 2, device=like.device)
    places = torch.cat((near_places, far_places))
    rows = [PassRow(0, 0, 4), PassRow(1, 0, 2)]
    for attempt in range(_TRIES):
        near, far = (_noise(n, hidden_size, 2 * attempt + n, like) for n in (4, 2))
        alone = run(near, near_places, [PassRow(0, 0, 4)], GrowingStore()).float()
        together = run(torch.cat((near, far)), places, rows, GrowingStore())
        if _clears(bar, _shares(together[:4], alone, alone)):
            return True
    return False


def _shares(found: torch.Tensor, expected: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Of each token the largest difference, as a share of the largest value in `whole`."""
    return (found.float() - expected).abs().amax(-1) / max(1e-6, float(whole.abs().max()))


def _clears(bar: Bar, shares: torch.Tensor) -> bool:
    close = int((shares <= bar.share).sum())
    return 2 * close > len(shares) if bar.by_block else close == len(shares)


def _noise(tokens: int, hidden_size: int, seed: int, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, hidden_size, generator=generator).to(like)
