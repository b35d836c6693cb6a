"""Virtual time: events in the order of their times, and of their making among equals."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any


class Clock:
    """Runs what is due, one event after the other."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the simulation began."""
        self.events = 0
        """How many have been run."""
        self._numbers = count()
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have `action(*arguments)` run at `time`, at once if that is past."""
        heapq.heappush(self._heap, (max(time, self.now), next(self._numbers), action, arguments))

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """The same, `delay_s` from now."""
        heapq.heappush(self._heap, (self.now + delay_s, next(self._numbers), action, arguments))

    def run(self, done: Callable[[], bool]) -> None:
        """Run events until `done()`, or until there are none."""
        heap = self._heap
        while heap and not done():
            self.now, _, action, arguments = heapq.heappop(heap)
            self.events += 1
            action(*arguments)
