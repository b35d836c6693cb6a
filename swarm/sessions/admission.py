"""A server's room for sessions: who gets it, who waits for it, and that all of it comes back."""

from collections.abc import Iterable
from dataclasses import dataclass

from swarm.sessions.messages import Grant
from swarm.spans import SessionId


@dataclass(frozen=True)
class Waiting:
    """A session that waits in line for `tokens` until `deadline`."""

    session: SessionId
    tokens: int
    deadline: float


@dataclass(frozen=True)
class Decision:
    """What changed: `admitted` have their room now, `expired` have waited in vain."""

    admitted: tuple[SessionId, ...] = ()
    expired: tuple[SessionId, ...] = ()


class Admission:
    """Counts cache tokens; a session's `rows x length`, each row rounded up to whole pages.

    Line: first come, first served; nobody overtakes a session that waits, so a large one is not
    starved by small ones. A session is in line once, or has its room once.
    """

    def __init__(self, capacity_tokens: int, page_tokens: int = 1) -> None:
        self.capacity_tokens = capacity_tokens
        self.page_tokens = page_tokens
        self._rooms: dict[SessionId, int] = {}
        self._line: list[Waiting] = []

    @property
    def free_tokens(self) -> int:
        return self.capacity_tokens - sum(self._rooms.values())

    @property
    def sessions(self) -> tuple[SessionId, ...]:
        """Those that have room."""
        return tuple(self._rooms)

    @property
    def line(self) -> tuple[Waiting, ...]:
        return tuple(self._line)

    @property
    def deadline(self) -> float | None:
        """When the next session in line gives up."""
        return min((waiting.deadline for waiting in self._line), default=None)

    def tokens_of(self, grant: Grant) -> int:
        pages = -(-grant.length // self.page_tokens)
        return grant.rows * pages * self.page_tokens

    def request(self, session: SessionId, tokens: int, wait_s: float, now: float) -> bool | None:
        """True: it has its room. False: there is none for it. None: it waits in line.

        Asking again for a session that has room or waits changes nothing but the answer.
        """
        if session in self._rooms:
            return True
        if any(waiting.session == session for waiting in self._line):
            return None
        if not self._line and tokens <= self.free_tokens:
            self._rooms[session] = tokens
            return True
        if wait_s <= 0 or tokens > self.capacity_tokens:
            return False
        self._line.append(Waiting(session, tokens, now + wait_s))
        return None

    def release(self, session: SessionId) -> Decision:
        """Take back the session's room or its place in line; unknown sessions are no error."""
        self._rooms.pop(session, None)
        self._line = [waiting for waiting in self._line if waiting.session != session]
        return Decision(admitted=tuple(self._admit()))

    def tick(self, now: float) -> Decision:
        expired = [waiting.session for waiting in self._line if waiting.deadline <= now]
        self._line = [waiting for waiting in self._line if waiting.deadline > now]
        return Decision(admitted=tuple(self._admit()), expired=tuple(expired))

    def validate(self) -> None:
        """Raises AssertionError if the books are wrong; for tests."""
        assert self.free_tokens >= 0
        assert len({waiting.session for waiting in self._line}) == len(self._line)
        assert not any(waiting.session in self._rooms for waiting in self._line)
        assert not self._line or self._line[0].tokens > self.free_tokens

    def _admit(self) -> Iterable[SessionId]:
        while self._line and self._line[0].tokens <= self.free_tokens:
            first = self._line.pop(0)
            self._rooms[first.session] = first.tokens
            yield first.session
