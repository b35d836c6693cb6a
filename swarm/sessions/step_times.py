"""When a step of a session is late."""

from collections import deque

FIRST_S = 5.0
"""A step is late after so long while too few are known, unless it is predicted to be slow."""
FEWEST = 8
"""So many steps are enough to judge the next one."""
KEPT = 64
MIN_S = 1.0
MAX_S = 20.0
STRETCH = 4.0
"""A step is late when it takes so many times what nine of ten take, or what was predicted."""
MAX_CHUNK_S = 240.0
"""By which a prediction, which rests on what servers say of themselves, lengthens the time that
nothing may come."""


class StepTimes:
    """How long the decode steps of a session took.

    The deadline follows them: one that is late does not spoil it, and each call in vain stretches
    it until steps come in time again. Over other hops the first steps may take what is predicted
    there, and `MAX_S` at most whatever is predicted.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT)
        self._patience = 1.0
        self._predicted_s = 0.0
        self._over_these_hops = 0

    @property
    def deadline_s(self) -> float:
        """After how long without its answer a step is late."""
        least_s, usual_s = FIRST_S, 0.0
        if len(self._seconds) >= FEWEST:
            least_s = MIN_S
            usual_s = sorted(self._seconds)[len(self._seconds) * 9 // 10]
        if self._over_these_hops < FEWEST:
            usual_s = max(usual_s, self._predicted_s)
        return min(MAX_S, max(least_s, STRETCH * usual_s) * self._patience)

    def over(self, predicted_s: float) -> None:
        """The next steps take other hops; `predicted_s`: what one takes there by what the servers
        say, 0 if that is not known."""
        self._predicted_s = predicted_s
        self._over_these_hops = 0

    def add(self, seconds: float) -> None:
        """A step took so long."""
        self._seconds.append(seconds)
        self._over_these_hops += 1
        self._patience = max(1.0, 0.9 * self._patience)

    def was_late(self) -> None:
        self._patience = min(8.0, 2 * self._patience)


def silence_s(timeout_s: float, predicted_s: float) -> float:
    """How long nothing may come while an answer is awaited: `timeout_s`, and as many times what the
    largest piece of a prompt is predicted to take as a late step takes."""
    return timeout_s + min(MAX_CHUNK_S, STRETCH * predicted_s)
