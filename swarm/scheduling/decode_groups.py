"""Which decode rows share a pass: more of them on crowded cores, fewer in a convoy. Pure."""

from collections.abc import Callable, Collection

from swarm.scheduling.convoy import ConvoyControl
from swarm.scheduling.gathering import Gathering

CALM_S = 30.0
"""Passes are cut only where nobody else wanted the cores for so long: on cores that several
processes share, more and smaller passes take the time that the others need."""


class DecodeGroups:
    """The two rules as the engine asks them; never both at a time. Times are in seconds."""

    def __init__(self, pass_s: Callable[[int], float]) -> None:
        """`pass_s(rows)`: what a pass over so many decode rows takes."""
        self._gathering = Gathering()
        self._convoy = ConvoyControl(pass_s)
        self._crowded_at = float("-inf")

    def pass_ended(
        self, sessions: Collection[bytes], wall_s: float, processor_s: float, now: float
    ) -> None:
        """`sessions` had decode rows in a pass that took `wall_s`, and so much of this thread's
        processor time."""
        if sessions:
            self._gathering.pass_ended(sessions, wall_s, processor_s, now)
        if self._gathering.crowded:
            self._crowded_at = now
        self._convoy.pass_ended(sessions, wall_s, now)

    def session_ended(self, session: bytes) -> None:
        self._gathering.session_ended(session)
        self._convoy.session_ended(session)

    def wait_s(self, ready: int, waited_s: float, now: float) -> float:
        """How long to wait for more rows; 0: begin (see `Gathering`)."""
        return self._gathering.wait_s(ready, waited_s, now)

    def most_steps(self, now: float) -> int | None:
        """Decode steps of the next pass; None: all that are ready (see `ConvoyControl`)."""
        if now - self._crowded_at < CALM_S:
            self._convoy.join()
            return None
        return self._convoy.most_rows(now)
