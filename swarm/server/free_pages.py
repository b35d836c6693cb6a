"""The pages of a cache that no session has, kept as runs: what is taken lies together if it can.

A cache may have a hundred thousand pages, and a session takes as many runs as it has rows: no page
is looked at by itself that is not given or taken.
"""

from collections.abc import Iterable, Iterator

Run = tuple[int, int]
"""`start`, `end` (exclusive)."""


class FreePages:
    """Page numbers from 0 on; all are free at first."""

    def __init__(self, total: int) -> None:
        self.count = total
        self._runs: list[Run] = [(0, total)] if total else []
        """Ascending, with something between any two."""

    def __iter__(self) -> Iterator[int]:
        """All of them, ascending."""
        for start, end in self._runs:
            yield from range(start, end)

    def take(self, count: int) -> list[int]:
        """So many pages, which there have to be: the smallest run that suffices, else the first
        that there are."""
        fitting = [(end - start, at) for at, (start, end) in enumerate(self._runs)]
        _, at = min((one for one in fitting if one[0] >= count), default=(0, 0))
        taken: list[int] = []
        while len(taken) < count:
            start, end = self._runs[at]
            until = min(end, start + count - len(taken))
            taken.extend(range(start, until))
            if until < end:
                self._runs[at] = until, end
            else:
                del self._runs[at]
        self.count -= count
        return taken

    def give_back(self, pages: Iterable[int]) -> None:
        """Pages that were taken, in any order."""
        given = joined((page, page + 1) for page in pages)
        self.count += sum(end - start for start, end in given)
        self._runs = joined(sorted([*self._runs, *given]))


def joined(runs: Iterable[Run]) -> list[Run]:
    """The same in as few as possible, where one begins at the end of the one before."""
    found: list[Run] = []
    for start, end in runs:
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found
