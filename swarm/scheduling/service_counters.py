"""Who of those that wait has received the least: virtual counters in a tree.

After VTC (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): each client has a
counter of the service that it received, the waiting client with the lowest counter goes next, and
who begins to wait is lifted to the lowest counter of those who wait already, so that idleness
earns nothing and debts stay. Two things differ here. Theirs is one level of clients; here every
level of a path `(group, ..., client, line)` does the same among its siblings, so that a crowd of
identities in one group gets one group's service. And who comes back is lifted to one charge below
the lowest only: a client with one step at a time is away for a moment after each, and would lose
what it is behind.

Guarantee, on each level: of two siblings that wait all the time, but for the moments after they
are served, the service differs by at most twice the largest single charge.
"""

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import TypeAlias

Path: TypeAlias = tuple[Hashable, ...]

KNOWN, STRANGERS = "known", "strangers"
"""The first step of paths, where clients are told apart so; see `ServiceTree`."""
_KEPT = 256
"""Idle siblings whose counters are remembered beyond those that wait."""


class _Node:
    """`counter`: service received, and lifts. `order`: of the latest change, which breaks ties."""

    __slots__ = (
        "active",
        "busy",
        "children",
        "counter",
        "floor",
        "heap",
        "key",
        "largest",
        "order",
        "served",
    )

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.counter = 0.0
        self.order = 0
        self.active = 0
        """Leaves below that wait; 1 for a leaf that does."""
        self.busy = 0
        """Children that are active."""
        self.children: dict[Hashable, _Node] = {}
        self.floor = 0.0
        """The counter that a child begins with when nobody waits: that of the last who left."""
        self.served = False
        self.largest = 0.0
        """The largest single charge of a child."""
        self.heap: list[tuple[float, int, _Node]] = []
        """Of the waiting children; entries whose order is not the child's are stale."""

    def __lt__(self, other: "_Node") -> bool:
        return self.order < other.order

    def child(self, key: Hashable) -> "_Node":
        """The child of that name; a new one if there is none."""
        found = self.children.get(key)
        if found is None:
            found = self.children[key] = _Node(key)
        return found

    def lowest(self) -> float:
        """The lowest counter of those that wait, or of the last who did."""
        if not self.busy:
            self.heap.clear()  # all that is left there is stale
            return self.floor
        first = self.least()
        assert first is not None
        return first.counter

    def least(self) -> "_Node | None":
        """The waiting child with the lowest counter, of equals the one that changed first."""
        heap = self.heap
        while heap:
            _, order, child = heap[0]
            if child.active and child.order == order:
                return child
            heappop(heap)
        return None

    def place(self, child: "_Node", order: int) -> None:
        """The child's counter has changed, or it begins to wait."""
        child.order = order
        if len(self.heap) > 64 + 4 * len(self.children):
            self.heap = [entry for entry in self.heap if entry[2].order == entry[1]]
            heapify(self.heap)
        heappush(self.heap, (child.counter, order, child))


class ServiceTree:
    """The counters of one class of service. `activate` and `charge` cost O(levels x log n).

    If paths begin with `KNOWN` and `STRANGERS`, service is divided between the two by how many
    groups of each wait, but strangers get at least a floor of it and at most a cap.
    """

    def __init__(self, strangers: tuple[float, float] = (0.0, 1.0)) -> None:
        """`strangers`: their floor and cap, between 0 and 1."""
        self._root = _Node(None)
        self._changes = 0
        self._floor, self._cap = strangers

    def activate(self, path: Path) -> None:
        """The leaf begins to wait; it did not."""
        parent = self._root
        parent.active += 1
        for key in path:
            node = parent.child(key)
            if not node.active:
                lowest = parent.lowest()
                if node.served:
                    lowest -= parent.largest
                if node.counter < lowest:
                    node.counter = lowest
                node.active = 1
                parent.busy += 1
                self._changes += 1
                parent.place(node, self._changes)
            else:
                node.active += 1
            parent = node

    def deactivate(self, path: Path) -> None:
        """The leaf no longer waits; it did."""
        parent = self._root
        parent.active -= 1
        for key in path:
            node = parent.child(key)
            node.active -= 1
            if not node.active:
                parent.busy -= 1
                if parent.floor < node.counter:
                    parent.floor = node.counter
                if len(parent.children) > 2 * _KEPT:
                    self._forget_idle(parent)
            parent = node

    def least(self) -> Path:
        """The leaf whose turn it is. Raises IndexError when none waits."""
        node, path = self._root, []
        while (child := node.least()) is not None:
            path.append(child.key)
            node = child
        if not path:
            raise IndexError("nobody waits")
        return tuple(path)

    def least_leaf(self) -> Hashable:
        """The last step of that path. Raises IndexError when none waits."""
        node = self._root
        while (child := node.least()) is not None:
            node = child
        if node is self._root:
            raise IndexError("nobody waits")
        return node.key

    def charge(self, path: Path, amount: float) -> None:
        """The leaf has been served, in any unit that is always the same."""
        parent = self._root
        price = amount * self._price(path[0]) if STRANGERS in parent.children else amount
        for key in path:
            node = parent.child(key)
            node.counter += price
            node.served = True
            if parent.largest < price:
                parent.largest = price
            if node.active:
                self._changes += 1
                parent.place(node, self._changes)
            parent, price = node, amount

    def _price(self, kind: Hashable) -> float:
        """What service counts for known ones or for strangers: less, the more they are to get."""
        strangers, known = self._root.children[STRANGERS], self._root.children.get(KNOWN)
        if known is None or not (strangers.busy and known.busy):
            return 1.0
        share = strangers.busy / (strangers.busy + known.busy)
        share = min(max(share, self._floor), self._cap)
        return 0.5 / (share if kind == STRANGERS else 1.0 - share)

    def _forget_idle(self, parent: _Node) -> None:
        """Keeps memory bounded: an idle counter at or below the lowest waiting one says nothing,
        for its owner would be lifted anyway; beyond that the lowest are forgiven."""
        children = parent.children
        if len(children) % _KEPT:
            return
        idle = sorted(
            (child for child in children.values() if not child.active),
            key=lambda child: child.counter,
        )
        for child in idle[:-_KEPT]:
            del children[child.key]
