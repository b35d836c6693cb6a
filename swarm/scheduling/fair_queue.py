"""Who goes next, for the engine's passes and for the fragments on a link: one policy, two places.

The policy is "decode first": classes in their order, first come first served within a class. A
session's own order is strict and stands above the classes: of each session only the oldest entry
may be chosen.
"""

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic, TypeVar

from swarm.scheduling.classes import ServiceClass

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A piece of work that waits.

    `client`: who is charged for it. `session`: whose order it keeps; `b""`: nobody's.
    `cost`: what it takes, in the user's own unit (tokens in the engine, bytes on a link).
    """

    item: T
    service_class: ServiceClass
    client: str
    session: bytes
    cost: int


class FairQueue(Generic[T]):
    """Entries by service class, then by arrival; `push` and `pop` cost O(log n)."""

    def __init__(self) -> None:
        self._arrivals = 0
        self._length = 0
        self._costs = [0] * len(ServiceClass)
        self._ready: list[list[tuple[int, Entry[T]]]] = [[] for _ in ServiceClass]
        self._sessions: dict[bytes, deque[tuple[int, Entry[T]]]] = {}
        """All waiting entries of each session, oldest first; the first one is also in `_ready`."""

    def __len__(self) -> int:
        return self._length

    def cost(self, service_class: ServiceClass) -> int:
        """The cost of everything that waits in this class."""
        return self._costs[service_class]

    def push(self, entry: Entry[T]) -> None:
        arrival = (self._arrivals, entry)
        self._arrivals += 1
        self._length += 1
        self._costs[entry.service_class] += entry.cost
        if entry.session:
            line = self._sessions.setdefault(entry.session, deque())
            line.append(arrival)
            if len(line) > 1:
                return
        heappush(self._ready[entry.service_class], arrival)

    def peek(self, best: ServiceClass = ServiceClass.CONTROL) -> Entry[T] | None:
        """The entry that `pop` would give; None when nothing waits. `best`: of this class or a
        later one."""
        for ready in self._ready[best:]:
            if ready:
                return ready[0][1]
        return None

    def pop(self, best: ServiceClass = ServiceClass.CONTROL) -> Entry[T]:
        """Raises IndexError when nothing waits, of class `best` or a later one."""
        for ready in self._ready[best:]:
            if ready:
                _, entry = heappop(ready)
                break
        else:
            raise IndexError("pop from an empty FairQueue")
        self._forget(entry)
        if entry.session:
            line = self._sessions[entry.session]
            line.popleft()
            if line:
                heappush(self._ready[line[0][1].service_class], line[0])
            else:
                del self._sessions[entry.session]
        return entry

    def remove_session(self, session: bytes) -> list[Entry[T]]:
        """Takes out everything that waits for this session, oldest first."""
        line = self._sessions.pop(session, None)
        if line is None:
            return []
        head_class = line[0][1].service_class
        kept = [arrival for arrival in self._ready[head_class] if arrival[0] != line[0][0]]
        self._ready[head_class] = sorted(kept, key=lambda arrival: arrival[0])
        removed = [entry for _, entry in line]
        for entry in removed:
            self._forget(entry)
        return removed

    def _forget(self, entry: Entry[T]) -> None:
        self._length -= 1
        self._costs[entry.service_class] -= entry.cost
