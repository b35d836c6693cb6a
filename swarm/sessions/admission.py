"""A server's room for sessions: who gets it, who waits for it, and that all of it comes back."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from swarm.sessions.messages import Grant
from swarm.spans import SessionId

MAX_OVERTAKES = 8
"""How many sessions may be let in past one that waits."""
HEADROOM_SHARE = 16
"""One page of so many is kept for sessions that have lost another server."""


def headroom_tokens(capacity_tokens: int, page_tokens: int) -> int:
    """What is kept of a cache for repairs, in whole pages; nothing of a small one."""
    return capacity_tokens // page_tokens // HEADROOM_SHARE * page_tokens


@dataclass
class Waiting:
    """A session that waits in line for `tokens` until `deadline`."""

    session: SessionId
    tokens: int
    deadline: float
    client: str = ""
    repair: bool = False
    """It runs already, and has lost a server elsewhere."""
    overtaken: int = 0
    """How many were let in past it."""


@dataclass(frozen=True)
class Decision:
    """What changed: `admitted` have their room now, `expired` have waited in vain."""

    admitted: tuple[SessionId, ...] = ()
    expired: tuple[SessionId, ...] = ()


class Admission:
    """Counts cache tokens; a session's `rows x length`, each row rounded up to whole pages.

    Line: first come, first served, but who fits may overtake who does not, each at most
    `MAX_OVERTAKES` times: a large session is neither starved by small ones nor does it block them.
    A client that has room already and would have more than half of all lets the other clients in
    line go first, just as often; as long as nobody else waits, it may have everything. A session is
    in line once, or has its room once.

    While there are sessions, new ones leave the headroom free, so that one that has lost its server
    elsewhere finds room here; a session that needs all there is has it when nobody else is here.
    Who comes for nothing and stays may be asked to go (`gives_way`).
    """

    def __init__(
        self,
        capacity_tokens: int,
        page_tokens: int = 1,
        row_tokens: int = 0,
        headroom_tokens: int = 0,
    ) -> None:
        """`row_tokens`: what a row costs beside its slots, for state that does not grow.
        `headroom_tokens`: of the capacity, for repairs."""
        self.capacity_tokens = capacity_tokens
        self.headroom_tokens = headroom_tokens
        self.page_tokens = page_tokens
        self.row_tokens = row_tokens
        self._rooms: dict[SessionId, tuple[int, str]] = {}
        """Tokens and client of each session."""
        self._used_tokens = 0
        self._held_by: Counter[str] = Counter()
        """Tokens of all sessions of each client that has some."""
        self._line: list[Waiting] = []

    @property
    def free_tokens(self) -> int:
        return self.capacity_tokens - self._used_tokens

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
        pages = -(-(grant.length + self.row_tokens) // self.page_tokens)
        return grant.rows * pages * self.page_tokens

    def request(
        self,
        session: SessionId,
        tokens: int,
        wait_s: float,
        now: float,
        client: str = "",
        *,
        repair: bool = False,
    ) -> bool | None:
        """True: it has its room. False: there is none for it. None: it waits in line.

        Asking again for a session that has room or waits changes nothing but the answer.
        """
        if session in self._rooms:
            return True
        if any(waiting.session == session for waiting in self._line):
            return None
        if tokens > self.capacity_tokens:
            return False
        newcomer = Waiting(session, tokens, now + wait_s, client, repair)
        self._line.append(newcomer)
        if self._next() is newcomer:
            self._let_in(newcomer)
            return True
        if wait_s <= 0:
            self._line.pop()
            return False
        return None

    def release(self, session: SessionId) -> Decision:
        """Take back the session's room or its place in line; unknown sessions are no error."""
        tokens, client = self._rooms.pop(session, (0, ""))
        self._used_tokens -= tokens
        self._held_by[client] -= tokens
        if not self._held_by[client]:
            del self._held_by[client]
        self._line = [waiting for waiting in self._line if waiting.session != session]
        return Decision(admitted=tuple(self._admit()))

    def tick(self, now: float) -> Decision:
        """Who has waited in vain until `now`, and who is let in because of that."""
        expired = [waiting.session for waiting in self._line if waiting.deadline <= now]
        self._line = [waiting for waiting in self._line if waiting.deadline > now]
        return Decision(admitted=tuple(self._admit()), expired=tuple(expired))

    def gives_way(self, unused: Iterable[SessionId]) -> SessionId | None:
        """Of sessions that nobody uses, those first that have not been used for longest, the one
        that is to end for the sake of the line; None: nobody waits, or all of them would not do.

        It is one of the client that has most room; none ends for another of the same client.
        """
        rooms = {session: self._rooms[session] for session in unused if session in self._rooms}
        for waiting in self._line:
            others = {one: room for one, room in rooms.items() if room[1] != waiting.client}
            gain = sum(tokens for tokens, _ in others.values())
            if others and waiting.tokens <= self._free_for(waiting) + gain:
                return max(others, key=lambda session: self._held_by[others[session][1]])
        return None

    def validate(self) -> None:
        """Raises AssertionError if the books are wrong; for tests."""
        assert self.free_tokens >= 0
        assert self._used_tokens == sum(tokens for tokens, _ in self._rooms.values())
        held: Counter[str] = Counter()
        for tokens, client in self._rooms.values():
            held[client] += tokens
        assert self._held_by == held and all(self._held_by.values())
        assert len({waiting.session for waiting in self._line}) == len(self._line)
        assert not any(waiting.session in self._rooms for waiting in self._line)
        assert all(waiting.overtaken <= MAX_OVERTAKES for waiting in self._line)
        assert self._next() is None

    def _admit(self) -> Iterable[SessionId]:
        while (waiting := self._next()) is not None:
            self._let_in(waiting)
            yield waiting.session

    def _let_in(self, guest: Waiting) -> None:
        for ahead in self._line[: self._line.index(guest)]:
            ahead.overtaken += 1
        self._line.remove(guest)
        self._rooms[guest.session] = (guest.tokens, guest.client)
        self._used_tokens += guest.tokens
        self._held_by[guest.client] += guest.tokens

    def _next(self) -> Waiting | None:
        """Who is to be let in now."""
        modest = {waiting.client for waiting in self._line if not self._is_greedy(waiting)}
        for waiting in self._line:
            patient = waiting.overtaken >= MAX_OVERTAKES
            yields = not patient and self._is_greedy(waiting) and bool(modest - {waiting.client})
            if waiting.tokens <= self._free_for(waiting) and not yields:
                return waiting
            if patient:
                return None
        return None

    def _free_for(self, waiting: Waiting) -> int:
        kept = self.headroom_tokens if self._rooms and not waiting.repair else 0
        return self.free_tokens - kept

    def _is_greedy(self, waiting: Waiting) -> bool:
        held = self._held_by[waiting.client]
        return held > 0 and 2 * (held + waiting.tokens) > self.capacity_tokens
