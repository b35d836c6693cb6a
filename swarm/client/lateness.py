"""A decode step that is late: which hop keeps it, so that the session can try another."""

from swarm.sessions.client import ClientSession
from swarm.sessions.step_times import StepTimes
from swarm.spans import PeerId

ASK_S = 0.4
"""How long the hops get to say what they have of a late step."""


class Lateness:
    """Pure; times in seconds of one clock.

    When a step is late, the client fences its own route: each hop says at once what it holds, and
    the step is sent again. Who does not answer, or has the step and has not passed it on, is
    suspected, and another way is prepared; whichever answers first is taken.
    """

    def __init__(self) -> None:
        self.suspects: set[PeerId] = set()
        self.asked_at: float | None = None
        """When the hops were asked about the step that is late."""
        self._times = StepTimes()

    def look(self, client: ClientSession, now: float) -> bool:
        """Whether the hops are to be asked now."""
        if self.asked_at is None:
            if client.waited_s(now) <= self._times.deadline_s:
                return False
            self.asked_at = now
            self._times.was_late()
            return True
        suspect = client.suspect
        if now - self.asked_at >= ASK_S and suspect is not None:
            self.suspects = {suspect}
        return False

    def answered(self, seconds: float | None) -> None:
        """An answer came; `seconds`: how long its decode step took, None for what is no such."""
        self.forget()
        if seconds is not None:
            self._times.add(seconds)

    def over(self, predicted_s: float) -> None:
        """The session has other hops; `predicted_s` as in `StepTimes.over`."""
        self.forget()
        self._times.over(predicted_s)

    def forget(self) -> None:
        """The session goes on."""
        self.suspects.clear()
        self.asked_at = None
