"""How long a session's decode steps take, and from when on one is late."""

from collections import deque

FIRST_S = 5.0
"""A step is late after so long while too few are known."""
FEWEST = 8
"""So many steps are enough to judge the next one."""
KEPT = 64
LEAST_S = 1.0
MOST_S = 20.0
STRETCH = 4.0
"""A step is late when it takes so many times what nine of ten take."""


class StepTimes:
    """The newest steps of one session, all hops together.

    Robust rather than exact: a few slow steps among many change nothing, and a session that was
    called late for nothing waits twice as long before the next call, so that a busy swarm is not
    made busier by sessions that flee from it.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT)
        self._patience = 1.0

    @property
    def deadline_s(self) -> float:
        """After how long without its answer a step is late."""
        if len(self._seconds) < FEWEST:
            return FIRST_S * self._patience
        usual_s = sorted(self._seconds)[len(self._seconds) * 9 // 10]
        return min(MOST_S, max(LEAST_S, STRETCH * usual_s) * self._patience)

    def add(self, seconds: float) -> None:
        """A step was answered in time."""
        self._seconds.append(seconds)
        self._patience = max(1.0, self._patience * 0.99)

    def was_late(self) -> None:
        self._patience = min(8.0, 2 * self._patience)
