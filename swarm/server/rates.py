"""How fast counters grow: the one place where a figure of the present is made from totals."""

from collections import deque
from collections.abc import Hashable, Mapping

SAMPLE_S = 1.0
"""How often the counters are read."""
WINDOW_S = 10.0
"""A rate is the mean over so long; less while the server is young."""


class Rates:
    """Reads nothing itself: `sample` gets all counters, `per_s` tells how fast one has grown."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, dict[Hashable, float]]] = deque()

    def sample(self, now: float, counters: Mapping[Hashable, float]) -> None:
        """The counters as they are now, in seconds of any clock that never goes back."""
        self._samples.append((now, dict(counters)))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window_s:
            self._samples.popleft()

    def per_s(self, counter: Hashable) -> float:
        """Of the last `window_s`. A counter that was not there before began at 0, as did one that
        fell (its link was made anew)."""
        if len(self._samples) < 2:
            return 0.0
        (began, before), (ended, after) = self._samples[0], self._samples[-1]
        count, first = after.get(counter, 0.0), before.get(counter, 0.0)
        grown = count - first if count >= first else count
        return grown / (ended - began) if ended > began else 0.0
