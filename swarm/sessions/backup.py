"""What a peer has pushed over one boundary of the chain, kept so that it can be pushed again."""

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from swarm.sessions.events import Part
from swarm.sessions.messages import RowOperation


@dataclass(eq=False)
class _Piece:
    """One payload as it was made; shared by all rows that still need some of it."""

    payload: Any
    size_bytes: int
    uses: int = 0
    """Segments that have some of it."""


@dataclass(frozen=True)
class _Segment:
    """Slots `start .. start+count-1` of a row: tokens of a piece from `first` on."""

    piece: _Piece
    first: int
    start: int
    count: int
    position_ids: tuple[int, ...]

    def between(self, low: int, high: int) -> "_Segment | None":
        low, high = max(low, self.start), min(high, self.start + self.count)
        if low >= high:
            return None
        skip = low - self.start
        positions = self.position_ids[skip : skip + high - low]
        return replace(
            self, first=self.first + skip, start=low, count=high - low, position_ids=positions
        )


class Backup:
    """The payloads of a boundary by row and slot, in step with truncations and forks.

    Payloads stay opaque; a fork shares them. `evict` drops everything at once, because half a
    backup is useless; from then on nothing is kept any more.
    """

    def __init__(self, *, keep: bool) -> None:
        self._rows: list[list[_Segment]] | None = [] if keep else None
        self._size_bytes = 0

    @property
    def kept(self) -> bool:
        return self._rows is not None

    def evict(self) -> bool:
        """Whether it was kept until now."""
        kept, self._rows, self._size_bytes = self.kept, None, 0
        return kept

    def size_bytes(self) -> int:
        """Bytes of all payloads of which some token is still needed; known without counting."""
        return self._size_bytes

    def append(
        self,
        starts: tuple[int, ...],
        counts: tuple[int, ...],
        position_ids: tuple[int, ...],
        payload: Any,
        size_bytes: int,
    ) -> None:
        """Add a payload `[sum(counts), ...]` for slots from `starts` on, where each row ends."""
        if self._rows is None:
            return
        if not self._rows:
            self._rows = [[] for _ in starts]
        piece = _Piece(payload, size_bytes)
        first = 0
        for row, start, count in zip(self._rows, starts, counts, strict=True):
            if count:
                positions = position_ids[first : first + count]
                row.append(_Segment(piece, first, start, count, positions))
                self._uses(piece, 1)
            first += count

    def apply(self, operation: RowOperation | None) -> None:
        """As the rows of the session; `operation` has no fault."""
        if self._rows is None or operation is None:
            return
        if operation.parents is not None:
            parents = operation.parents
            # A session without rows forks into empty ones, whatever numbers it names.
            old = self._rows
            self._rows = [list(old[parent]) if old else [] for parent in parents]
            children = Counter(parents)
            for parent, row in enumerate(old):
                if (more := children[parent] - 1) != 0:
                    for segment in row:
                        self._uses(segment.piece, more)
        if operation.truncate_to is not None and self._rows:
            for row, keep in zip(self._rows, operation.truncate_to, strict=True):
                self._truncate(row, keep)

    def begins(self, held: tuple[int, ...]) -> tuple[int, ...] | None:
        """From which slot on each row is whole up to `held`; None: nothing is kept.

        A row has no holes: what is appended goes on where it ends, and it is cut from its end. So
        its length costs nothing here, whoever asks how often."""
        if self._rows is None:
            return None
        rows = self._rows or [[] for _ in held]
        return tuple(
            row[0].start if row and row[-1].start + row[-1].count == reached else reached
            for row, reached in zip(rows, held, strict=True)
        )

    def read(
        self, starts: tuple[int, ...], counts: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[Part, ...]] | None:
        """Position ids and payload parts of these slots, row after row; None: not all are kept."""
        if self._rows is None or (len(self._rows) != len(starts) and any(counts)):
            return None
        positions: list[int] = []
        parts: list[Part] = []
        for row, start, count in zip(self._rows, starts, counts, strict=False):
            reached = start
            for segment in _cut(row, start, start + count):
                if segment.start != reached:
                    return None
                reached += segment.count
                positions += segment.position_ids
                parts.append(Part(segment.piece.payload, segment.first, segment.count))
            if reached != start + count:
                return None
        return tuple(positions), tuple(parts)

    def _truncate(self, row: list[_Segment], keep: int) -> None:
        """In place and from the end: rollbacks of a few slots are the common case."""
        while row and row[-1].start + row[-1].count > keep:
            dropped = row.pop()
            part = dropped.between(0, keep)
            if part is not None:
                row.append(part)
            else:
                self._uses(dropped.piece, -1)

    def _uses(self, piece: _Piece, more: int) -> None:
        """So many more segments have some of the piece."""
        if not piece.uses:
            self._size_bytes += piece.size_bytes
        piece.uses += more
        if not piece.uses:
            self._size_bytes -= piece.size_bytes


def _cut(row: list[_Segment], low: int, high: int) -> list[_Segment]:
    """Found by halving: a row may have a segment for each of its tokens."""
    parts: list[_Segment] = []
    index = max(0, bisect_right(row, low, key=lambda segment: segment.start) - 1)
    while index < len(row) and row[index].start < high:
        if (part := row[index].between(low, high)) is not None:
            parts.append(part)
        index += 1
    return parts
