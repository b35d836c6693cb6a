"""Cutting a step into pieces that travel one behind the other."""

from collections.abc import Iterator
from dataclasses import dataclass

from swarm.sessions.messages import Want


@dataclass(frozen=True)
class Piece:
    """A run of a step's tokens, in the packed order (row 0's tokens, then row 1's, ...)."""

    start: int
    end: int
    counts: tuple[int, ...]
    """Of each row."""
    want: Want
    taken: tuple[int, ...]
    """Which tokens of the piece's answer were asked for; the others came along."""


def cut(counts: tuple[int, ...], keep: int, most: int) -> list[Piece]:
    """Cut `counts[r]` new tokens of each row into pieces of at most `most` tokens.

    `keep`: how many of each row's last tokens are asked for. A piece asks for all of its tokens,
    for its rows' last ones, or for none, so that a long prompt does not come back in full.
    """
    wanted = [index >= count - keep for count in counts for index in range(count)]
    ends = _ends(counts)
    pieces = []
    for start, end in _ranges(wanted, keep, most):
        part = tuple(
            max(0, min(end, row_end) - max(start, row_end - count))
            for count, row_end in zip(counts, ends, strict=True)
        )
        pieces.append(_piece(start, end, part, ends, wanted, keep))
    return pieces


def _ends(counts: tuple[int, ...]) -> list[int]:
    ends, total = [], 0
    for count in counts:
        total += count
        ends.append(total)
    return ends


def _ranges(wanted: list[bool], keep: int, most: int) -> Iterator[tuple[int, int]]:
    """Runs of equal `wanted` (with `keep` 1: everything is one run), cut evenly."""
    start = 0
    while start < len(wanted):
        end = len(wanted)
        if keep > 1:
            other = not wanted[start]
            end = next((i for i in range(start, end) if wanted[i] is other), end)
        parts = -(-(end - start) // most)
        for part in range(parts):
            yield (
                start + (end - start) * part // parts,
                start + (end - start) * (part + 1) // parts,
            )
        start = end


def _piece(
    start: int,
    end: int,
    part: tuple[int, ...],
    ends: list[int],
    wanted: list[bool],
    keep: int,
) -> Piece:
    if not any(wanted[start:end]):
        return Piece(start, end, part, Want.NONE, ())
    if keep > 1:
        return Piece(start, end, part, Want.ALL, tuple(range(end - start)))
    # One answer comes for each row with tokens here; a row that goes on later is not wanted yet.
    rows = [row for row, count in enumerate(part) if count]
    taken = tuple(index for index, row in enumerate(rows) if start < ends[row] <= end)
    return Piece(start, end, part, Want.LAST, taken)
