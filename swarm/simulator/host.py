"""Cores that several servers share."""

from collections.abc import Callable

from swarm.simulator.clock import Clock

_DONE_S = 1e-12


class OwnCores:
    """A server whose passes never wait for anybody else's."""

    shared = False

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def start(self, work_s: float, done: Callable[[], None]) -> None:
        """Call `done` when so much processor time has been spent on it."""
        self._clock.after(work_s, done)


class SharedCores:
    """A host with `cores`: with more passes than cores, all of them are slowed alike."""

    shared = True

    def __init__(self, clock: Clock, cores: float) -> None:
        self._clock = clock
        self._cores = cores
        self._running: dict[Callable[[], None], float] = {}
        """Processor time that each pass still needs."""
        self._since = 0.0
        self._version = 0

    def start(self, work_s: float, done: Callable[[], None]) -> None:
        """Call `done` when so much processor time has been spent on it."""
        self._advance()
        self._running[done] = work_s
        self._plan()

    def _rate(self) -> float:
        """Processor time that each pass gets in a second."""
        return min(1.0, self._cores / len(self._running))

    def _advance(self) -> None:
        now = self._clock.now
        if self._running:
            spent_s = (now - self._since) * self._rate()
            self._running = {done: left - spent_s for done, left in self._running.items()}
        self._since = now

    def _plan(self) -> None:
        """Only the newest plan counts; what was planned before is found to be old."""
        self._version += 1
        if self._running:
            soonest_s = max(0.0, min(self._running.values())) / self._rate()
            self._clock.after(soonest_s, self._ended, self._version)

    def _ended(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        least = min(self._running.values())
        ended = [done for done, left in self._running.items() if left <= max(least, _DONE_S)]
        for done in ended:
            del self._running[done]
        self._plan()
        for done in ended:
            done()


Cores = OwnCores | SharedCores
