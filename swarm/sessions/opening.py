"""The client's side of opening a session on every hop of a route: hold everywhere, then commit."""

from swarm.errors import (
    CacheFullError,
    CheckpointError,
    PeerTimeoutError,
    RefusedError,
    SwarmError,
    UnreachablePeerError,
)
from swarm.sessions.events import (
    Event,
    Forward,
    Instruction,
    Opened,
    PeerLost,
    Raise,
    Received,
    Tick,
)
from swarm.sessions.messages import (
    MAX_WAIT_S,
    Close,
    Commit,
    Fail,
    FailKind,
    Grant,
    Held,
    Hop,
    Open,
    Refused,
    RefuseKind,
    SignedGrant,
)
from swarm.spans import PeerId

ANSWER_S = 5.0
"""How long a hop may take to answer what it can answer at once, and how late beyond a deadline.

Less than the lease of a hold, with time for the commit to travel: the first hop that holds must
still do so when the last one has answered."""


class Opening:
    """Two phases, so that two sessions never each hold one server and wait for the other.

    First every hop is asked to hold at once, without waiting. If all hold, all are told to commit.
    If some have no room, everything is released and asked for again one hop after the other, in
    ascending order of peer id, this time waiting in line; everybody waits in that same order, so
    nobody waits in a circle. `Open.wait_s` is the time left to the deadline, and a hold lasts 8 s
    longer than that, so the first hold is still there when the last one is granted.

    Ends with `Opened` or `Raise`; `hops`: the indices to open (a change of route opens only the
    hops that are new), by default all. Without `may_wait` there is no second phase: what is full
    raises CacheFullError at once, for who has another route.
    """

    def __init__(
        self,
        grant: Grant,
        signed: SignedGrant,
        *,
        deadline_s: float,
        hops: tuple[int, ...] | None = None,
        may_wait: bool = True,
    ) -> None:
        self.grant = grant
        self.finished = False
        self._signed = signed
        self._deadline_s = min(deadline_s, MAX_WAIT_S)
        self._may_wait = may_wait
        self._hops = {
            grant.hops[index].peer: index
            for index in (range(len(grant.hops)) if hops is None else hops)
        }
        self._waiting: set[str] = set()
        """Peers whose answer is awaited."""
        self._holding: set[str] = set()
        self._in_line: list[str] = []
        """Second phase: peers that are still to be asked, in order."""
        self._refused: Refused | None = None
        self._attempt = 0
        self._ends = 0.0
        self._answer_by = 0.0

    @property
    def deadline(self) -> float | None:
        """When a `Tick` will next do something."""
        return None if self.finished else self._answer_by

    @property
    def due(self) -> frozenset[str]:
        """The peers whose answer should come at once; who waits in line has time."""
        return frozenset(self._waiting) if self._attempt == 0 else frozenset()

    def start(self, now: float) -> list[Instruction]:
        """Asks every hop at once; commits if there is none to ask."""
        self._ends = now + self._deadline_s
        self._answer_by = now + ANSWER_S
        self._waiting = set(self._hops)
        instructions: list[Instruction] = [self._open(peer, 0.0) for peer in self._hops]
        return instructions or self._commit()

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """What is to be done, in order; nothing once it has finished."""
        if self.finished:
            return []
        match event:
            case Received(sender, Held() as held) if self._awaited(sender, held):
                self._waiting.discard(sender)
                self._holding.add(sender)
                return self._go_on(now)
            case Received(sender, Refused() as refused) if self._awaited(sender, refused):
                return self._on_refused(sender, refused, now)
            case Received(sender, Fail() as fail) if sender in self._hops:
                return self._give_up(self._failure(sender, fail))
            case PeerLost(peer, detail) if peer in self._hops:
                text = f"{self._where(peer)} was lost while the session opened: {detail}"
                return self._give_up(UnreachablePeerError(text, peer))
            case Tick() if now >= self._answer_by:
                return self._give_up(self._late())
            case _:
                return []

    def cancel(self) -> list[Instruction]:
        """Release every hold, also of a session that is open; nothing is raised."""
        self.finished = True
        return self._release()

    def _awaited(self, sender: str, answer: Held | Refused) -> bool:
        return (
            sender in self._waiting
            and answer.session == self.grant.session
            and answer.route == self.grant.route
            and answer.attempt == self._attempt
        )

    def _on_refused(self, sender: str, refused: Refused, now: float) -> list[Instruction]:
        self._waiting.discard(sender)
        self._refused = refused
        final = self._attempt > 0 or not self._may_wait or now >= self._ends
        if refused.why is not RefuseKind.CACHE_FULL or final:
            return self._give_up(self._refusal(sender, refused, now))
        return self._go_on(now)

    def _go_on(self, now: float) -> list[Instruction]:
        if self._waiting:
            return []
        if self._attempt == 0 and self._refused is not None:
            released = self._release()
            self._attempt = 1
            self._in_line = sorted(self._hops)
            self._answer_by = self._ends + ANSWER_S
            return [*released, *self._next_in_line(now)]
        if self._in_line:
            return self._next_in_line(now)
        return self._commit()

    def _next_in_line(self, now: float) -> list[Instruction]:
        peer = self._in_line.pop(0)
        self._waiting = {peer}
        return [self._open(peer, max(0.0, self._ends - now))]

    def _open(self, peer: str, wait_s: float) -> Forward:
        message = Open(self._signed, self._hops[peer], wait_s, self._attempt)
        return Forward(PeerId(peer), message)

    def _commit(self) -> list[Instruction]:
        self.finished = True
        commit = Commit(self.grant.session, self.grant.route)
        return [*(Forward(PeerId(peer), commit) for peer in self._hops), Opened()]

    def _release(self) -> list[Instruction]:
        """Also for hops that have not answered: they may hold, or wait in line."""
        asked = sorted(self._holding | self._waiting)
        self._holding, self._waiting = set(), set()
        return [Forward(PeerId(peer), Close(self.grant.session)) for peer in asked]

    def _give_up(self, error: SwarmError) -> list[Instruction]:
        self.finished = True
        return [*self._release(), Raise(error)]

    def _where(self, peer: str) -> str:
        hop: Hop = self.grant.hops[self._hops[peer]]
        session = self.grant.session.hex()[:8]
        return f"{peer} (blocks {hop.start}:{hop.end}, session {session})"

    def _late(self) -> SwarmError:
        peer = min(self._waiting)
        if self._attempt:
            return self._full(peer, "it did not say why", "wait longer, or try again later")
        return PeerTimeoutError(
            f"{self._where(peer)} has not answered within {ANSWER_S:g} s; choose another route",
            peer,
        )

    def _refusal(self, peer: str, refused: Refused, now: float) -> SwarmError:
        said = f"{self._where(peer)} refused the session: {refused.why}: {refused.detail}"
        if refused.why is RefuseKind.CACHE_FULL:
            if self._attempt and now < self._ends:
                # It would wait in line if waiting could help.
                return self._full(peer, refused.detail, "or choose another server", never=True)
            return self._full(peer, refused.detail, "wait longer, or try again later")
        if refused.why is RefuseKind.WRONG_CHECKPOINT:
            return CheckpointError(f"{said}; this client asks for {self.grant.checkpoint}", peer)
        hop = self.grant.hops[self._hops[peer]]
        return RefusedError(
            f"{said}; look up the servers again and choose another route",
            session=self.grant.session,
            peer=peer,
            blocks=f"{hop.start}:{hop.end}",
        )

    def _failure(self, peer: str, fail: Fail) -> SwarmError:
        text = (
            f"{self._where(peer)} ended the session while it opened: {fail.why}: {fail.detail}; "
            "choose another route"
        )
        if fail.why is FailKind.PEER_LOST:
            return UnreachablePeerError(text, fail.peer or peer)
        return RefusedError(text, session=self.grant.session, peer=peer)

    def _full(self, peer: str, why: str, advice: str, never: bool = False) -> CacheFullError:
        hop = self.grant.hops[self._hops[peer]]
        when = f"within {self._deadline_s:g} s" if self._attempt else "now"
        when = "ever" if never else when
        needs = f"{self.grant.rows} rows x {self.grant.length} tokens"
        return CacheFullError(
            f"no room {when} for {needs} at {self._where(peer)}: {why}; ask for fewer tokens, "
            f"{advice}",
            session=self.grant.session,
            peer=peer,
            blocks=f"{hop.start}:{hop.end}",
        )
