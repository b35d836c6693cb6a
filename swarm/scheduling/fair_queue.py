"""Who goes next, for the engine's passes and for the fragments on a link: one policy, two places.

Decode first: classes go in their order. The classes behind still move: each of them earns credit
while it waits and others are served, and never waits longer than a bound for its next quantum.
Within a class whoever has received the least goes next (`service_counters`). A session's own order
is strict and stands above all that: of each session only the oldest entry may be chosen.

MoLink (EMNLP 2025) states the first two aims without publishing an algorithm; the credit and the
bound are this project's own.
"""

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.service_counters import Path, ServiceTree

T = TypeVar("T")

_CLASSES = tuple(ServiceClass)
_PATIENT = (ServiceClass.REPAIR, ServiceClass.PREFILL, ServiceClass.BULK)
"""The classes that others go before, and that earn credit for it."""


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


@dataclass(frozen=True)
class Policy:
    """What the classes behind decode are promised.

    `shares[c]`: of all that class c and the classes before it receive while c waits, the part that
    c gets at least, in the long run; at most 0.5. One that is not named gets what others leave.
    `longest_wait_s`: the bound `W_max`; None: no bound.
    """

    shares: Mapping[ServiceClass, float] = field(
        default_factory=lambda: {
            ServiceClass.REPAIR: 0.25,
            ServiceClass.PREFILL: 0.25,
            ServiceClass.BULK: 0.05,
        }
    )
    longest_wait_s: float | None = 2.0
    strangers: tuple[float, float] = (0.2, 0.5)
    """What all strangers together get of a class's service while known clients wait, too: at least,
    and at most. Only where clients are told apart so (`client_groups`)."""


DEFAULT_POLICY = Policy()


def own_group(client: str) -> Path:
    """Every client is a group of its own."""
    return (client,)


class _Line(Generic[T]):
    """What waits of one session, oldest first; only the first may be chosen."""

    __slots__ = ("entries", "held", "key", "path")

    def __init__(self, key: Hashable, path: Path) -> None:
        self.key = key
        self.path = path
        self.held = False
        self.entries: deque[Entry[T]] = deque()


class FairQueue(Generic[T]):
    """Entries, and the decision which of them is served next.

    `peek` chooses, `serve` says how much the chosen one has received (an entry may be served in
    parts), and `finish` takes it out. `now` is any clock that only moves forward, in seconds.
    """

    def __init__(
        self,
        policy: Policy = DEFAULT_POLICY,
        group_of: Callable[[str], Path] = own_group,
    ) -> None:
        """`group_of(client)`: the client's path in the tree of counters, e.g. `(group, client)`."""
        self.quantum = 1.0
        """The least that a class behind decode is served at once, in the unit of `serve`."""
        self._policy = policy
        self._group_of = group_of
        self._length = 0
        self._costs = [0] * len(ServiceClass)
        self._trees = [ServiceTree(policy.strangers) for _ in ServiceClass]
        self._waiting = [0] * len(ServiceClass)
        """Lines whose first entry is of this class."""
        self._since = [0.0] * len(ServiceClass)
        """When this class was last served, or began to wait."""
        self._credit = [0.0] * len(ServiceClass)
        self._lines: dict[Hashable, _Line[T]] = {}
        self._held: list[_Line[T]] = []

    def __len__(self) -> int:
        return self._length

    def cost(self, service_class: ServiceClass) -> int:
        """The cost of everything that waits in this class."""
        return self._costs[service_class]

    @property
    def patient_cost(self) -> int:
        """The cost of everything that waits behind decode."""
        costs = self._costs
        return sum([costs[each] for each in _PATIENT])

    def credit(self, service_class: ServiceClass) -> float:
        """What the class has earned and not yet received, in the unit of `serve`."""
        return self._credit[service_class]

    def since(self, service_class: ServiceClass) -> float:
        """When the class was last served, or began to wait after that."""
        return self._since[service_class]

    def overdue(self, service_class: ServiceClass, now: float) -> bool:
        """Whether the class waits for longer than the bound."""
        bound = self._policy.longest_wait_s
        return (
            bound is not None
            and self._waiting[service_class] > 0
            and now - self._since[service_class] >= bound
        )

    # ---- changes

    def push(self, entry: Entry[T], now: float = 0.0) -> None:
        """The entry waits, behind all others of its session."""
        key = _line_key(entry)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(key, (*self._group_of(entry.client), key))
        line.entries.append(entry)
        self._length += 1
        self._costs[entry.service_class] += entry.cost
        if len(line.entries) == 1 and not line.held:
            self._activate(line, entry.service_class, now)

    def peek(
        self,
        now: float = 0.0,
        best: ServiceClass = ServiceClass.CONTROL,
        last: ServiceClass = ServiceClass.BULK,
    ) -> Entry[T] | None:
        """The entry to be served next; None when nothing waits in the classes `best` to `last`."""
        chosen = self.next_class(now, best, last)
        if chosen is None:
            return None
        return self._lines[self._trees[chosen].least_leaf()].entries[0]

    def next_class(
        self,
        now: float,
        best: ServiceClass = ServiceClass.CONTROL,
        last: ServiceClass = ServiceClass.BULK,
    ) -> ServiceClass | None:
        """The class whose turn it is, of `best` to `last`; None when nothing waits in them."""
        waiting = self._waiting
        for first in range(best, last + 1):
            if waiting[first]:
                break
        else:
            return None
        if first != ServiceClass.CONTROL:
            for later in _PATIENT:
                if (
                    first < later <= last
                    and waiting[later]
                    and (self._credit[later] >= self.quantum or self.overdue(later, now))
                ):
                    return later
        return _CLASSES[first]

    def serve(self, entry: Entry[T], amount: float, now: float = 0.0) -> None:
        """The entry, the first of its session, receives `amount`."""
        served = entry.service_class
        self._trees[served].charge(self._lines[_line_key(entry)].path, amount)
        self._since[served] = now
        self._credit[served] = max(0.0, self._credit[served] - amount)
        self.earn(served, amount)

    def earn(self, served: ServiceClass, amount: float) -> None:
        """The classes that wait behind `served` earn credit for `amount` of its service."""
        for later in _PATIENT:
            if later > served and self._waiting[later]:
                share = self._policy.shares.get(later, 0.0)
                self._credit[later] += amount * share / (1.0 - share)

    def finish(self, entry: Entry[T], now: float = 0.0) -> None:
        """Takes out the entry, which is the first of its session."""
        line = self._lines[_line_key(entry)]
        assert line.entries[0] is entry
        line.entries.popleft()
        self._forget(entry)
        following = line.entries[0].service_class if line.entries else None
        if line.held:
            return
        if following is entry.service_class:
            return
        self._deactivate(line, entry.service_class)
        if following is None:
            del self._lines[line.key]
        else:
            self._activate(line, following, now)

    def hold(self, entry: Entry[T]) -> None:
        """Nothing of the entry's session is chosen until `release`; the entry is its first."""
        line = self._lines[_line_key(entry)]
        self._deactivate(line, entry.service_class)
        line.held = True
        self._held.append(line)

    def release(self, now: float = 0.0) -> None:
        """Ends all holds."""
        held, self._held = self._held, []
        for line in held:
            line.held = False
            if self._lines.get(line.key) is not line:
                continue
            if line.entries:
                self._activate(line, line.entries[0].service_class, now)
            else:
                del self._lines[line.key]

    def pop(
        self,
        now: float = 0.0,
        best: ServiceClass = ServiceClass.CONTROL,
        last: ServiceClass = ServiceClass.BULK,
    ) -> Entry[T]:
        """The entry that `peek` names, served in full and taken out.

        Raises IndexError when nothing waits in the classes `best` to `last`.
        """
        entry = self.peek(now, best, last)
        if entry is None:
            raise IndexError("pop from an empty FairQueue")
        self.serve(entry, entry.cost, now)
        self.finish(entry, now)
        return entry

    def remove_session(self, session: bytes) -> list[Entry[T]]:
        """Takes out everything that waits for this session, oldest first."""
        line = self._lines.pop(session, None)
        if line is None:
            return []
        if not line.held:
            self._deactivate(line, line.entries[0].service_class)
        removed = list(line.entries)
        for entry in removed:
            self._forget(entry)
        return removed

    def drain(self) -> list[Entry[T]]:
        """Takes out everything, each session's entries in their order; the counters stay."""
        drained: list[Entry[T]] = []
        self.release()
        for line in self._lines.values():
            self._deactivate(line, line.entries[0].service_class)
            drained += line.entries
        self._lines.clear()
        for entry in drained:
            self._forget(entry)
        return drained

    # ---- inside

    def _activate(self, line: _Line[T], service_class: ServiceClass, now: float) -> None:
        if not self._waiting[service_class]:
            self._since[service_class] = now
        self._waiting[service_class] += 1
        self._trees[service_class].activate(line.path)

    def _deactivate(self, line: _Line[T], service_class: ServiceClass) -> None:
        self._waiting[service_class] -= 1
        self._trees[service_class].deactivate(line.path)
        if not self._waiting[service_class]:
            # Credit is for those who waited: no more than the remainder of a quantum is kept.
            credit = min(self._credit[service_class], self.quantum)
            self._credit[service_class] = credit

    def _forget(self, entry: Entry[T]) -> None:
        self._length -= 1
        self._costs[entry.service_class] -= entry.cost


def _line_key(entry: Entry[T]) -> Hashable:
    return entry.session or (entry.client, entry.service_class)
