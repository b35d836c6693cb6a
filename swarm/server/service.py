"""The server's side of every session: messages in, engine jobs and messages out.

Everything here runs in the event loop's thread, and a decode step crosses it in one turn: from the
link through `HopSession` to the engine, and from there back to a link. The pure classes decide.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.errors import StepRejectedError
from swarm.scheduling.classes import ServiceClass
from swarm.server.activations import chosen_rows, own_copy
from swarm.server.backup_memory import BackupMemory
from swarm.server.engine_jobs import EngineResult, SessionEngine
from swarm.server.handing_over import hand_over
from swarm.server.new_routes import new_route
from swarm.server.outgoing import Outgoing
from swarm.server.over_sessions import OverSessions, client_knows
from swarm.server.reception import Guest, Quotas, Reception
from swarm.server.status import StatusCache
from swarm.server.translation import engine_job, outgoing_message, result_event
from swarm.server.unused_sessions import farewell, gives_way
from swarm.sessions.admission import Admission
from swarm.sessions.events import (
    Compute,
    Event,
    Forward,
    Free,
    Instruction,
    Leaving,
    PeerLost,
    Received,
    RouteChanged,
    Stopping,
    Tick,
)
from swarm.sessions.hop import LEASE_S, HopSession
from swarm.sessions.messages import (
    Close,
    Commit,
    Fail,
    FailKind,
    Fence,
    Gap,
    Held,
    Message,
    Open,
    Replay,
    StatusReply,
    StatusRequest,
    Step,
)
from swarm.spans import PeerId, SessionId, Span
from swarm.wire.links import Links

logger = logging.getLogger("swarm.server.service")

TICK_S = 0.25
"""How often deadlines are looked at."""


@dataclass(frozen=True)
class Hosting:
    """What this server announces: a session must fit it."""

    me: PeerId
    checkpoint: str
    span: Span
    hidden_size: int


class Service:
    """Serves sessions over links; a `LinkHandler`.

    A session's state lives in its `HopSession`; room is given by `Reception`. Session errors end
    one session and go to its client; nothing that a peer sends ends anything else.
    """

    def __init__(
        self,
        hosting: Hosting,
        engine: SessionEngine,
        admission: Admission,
        *,
        status: Callable[[], Mapping[str, Any]],
        locate: Callable[[], Awaitable[None]] | None = None,
        quotas: Quotas,
        backup_bytes: int = 1 << 28,
    ) -> None:
        """`status`: the fields of a `StatusReply`; called for requests, but not often. `locate`:
        tells the network where the servers of this model are, before one without a link is
        dialled. `backup_bytes`: most memory for the backups of all sessions."""
        self._hosting = hosting
        self._engine = engine
        self._status = StatusCache(status)
        self._locate = locate
        self.admission = admission
        self._reception = Reception(
            hosting.me, hosting.checkpoint, hosting.span, admission, LEASE_S, quotas
        )
        self.backups = BackupMemory(backup_bytes)
        self._outgoing: Outgoing | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sessions: dict[SessionId, HopSession] = {}
        self._over = OverSessions()
        self._idle = asyncio.Event()
        self._idle.set()

    # ---- lifecycle

    def start(self, links: Links) -> None:
        """Begins to look at deadlines; `links` carry what is sent. In the loop's thread."""
        self._outgoing = Outgoing(links, self._locate, self._on_unreachable, self._on_full)
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    @property
    def session_count(self) -> int:
        return len(self._sessions)

    @property
    def waiting_count(self) -> int:
        """Sessions in line for room."""
        return self._reception.waiting

    def refuse_new_sessions(self) -> None:
        """Draining: who asks or waits is told to go elsewhere."""
        for client, refused in self._reception.close():
            self._send(client, refused)

    async def hand_over(self) -> None:
        """Asks the clients to move their sessions, a few at a time; waits for the last to end."""
        await hand_over(
            lambda: list(self._sessions.values()),
            lambda hop: self._handle(hop, Leaving(f"{self._hosting.me} is about to leave")),
        )
        await self._idle.wait()

    async def close(self) -> None:
        """Ends every session, telling its client, and all that the service started."""
        self.refuse_new_sessions()
        detail = f"{self._hosting.me} is shutting down; open the session on another server"
        for hop in list(self._sessions.values()):
            self._handle(hop, Stopping(FailKind.SHUTTING_DOWN, detail))
        if self._timer is not None:
            self._timer.cancel()
        if self._outgoing is not None:
            await self._outgoing.close()

    # ---- messages

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> bool:
        """Takes one whole message of `peer`, in order per session; never raises for its content.

        True: a step of which nothing is computed, or an output."""
        match message:
            case Step() | Commit() | Replay() | Fence() | Gap() | Fail():
                return not self._on_session_message(peer, message, payload)
            case Open():
                self._on_open(peer, message)
            case Close():
                self._on_close(peer, message)
            case StatusRequest():
                status = self._status.read(self._now(), len(self._sessions))
                self._send(peer, StatusReply(message.request, status))
            case _:
                logger.debug("%s sent a %s, which no server awaits", peer, type(message).__name__)
                return True
        return False

    def on_link_lost(self, peer: PeerId, reason: str) -> None:
        """The link's own grace time is over: sessions of this client end now, those first that wait
        in line, else they would be given the room of the others."""
        self._let_in(self._reception.lost(peer))
        for hop in list(self._sessions.values()):
            self._handle(hop, PeerLost(peer, reason))
            self._handle(hop, Tick())

    def _on_session_message(
        self,
        peer: PeerId,
        message: Step | Commit | Replay | Fence | Gap | Fail,
        payload: memoryview,
    ) -> bool:
        """Whether something is computed because of it."""
        session = SessionId(message.session)
        hop = self._sessions.get(session)
        if hop is None:
            if not isinstance(message, Gap | Fail):
                self._on_unknown_session(peer, session)
            return False
        if isinstance(message, Fence) and message.signed is not None:
            self._on_new_route(peer, hop, message)
            return False
        computes = self._handle(hop, Received(peer, message, payload))
        if isinstance(message, Commit) and peer == hop.client:
            self._connect_successor(hop)
        return computes

    def _on_unknown_session(self, peer: PeerId, session: SessionId) -> None:
        """Says so once."""
        if session in self._over:
            return
        self._over.add(session)
        detail = f"{self._hosting.me} does not know session {session.hex()[:8]}; open it again"
        self._send(peer, Fail(session, 0, FailKind.UNKNOWN_SESSION, detail))

    def _on_close(self, peer: PeerId, message: Close) -> None:
        session = SessionId(message.session)
        hop = self._sessions.get(session)
        if hop is not None:
            self._handle(hop, Received(peer, message))
        elif self._reception.is_in_line(session, peer):
            self._let_in(self._reception.leave(session))

    def _on_new_route(self, peer: PeerId, hop: HopSession, fence: Fence) -> None:
        """The signature and the grant are checked here; what changes, the session decides."""
        if peer != hop.client:
            return
        grant = new_route(self._reception, hop, fence)
        if isinstance(grant, str):
            self._handle(hop, Stopping(FailKind.REJECTED, grant))
            return
        self._handle(hop, RouteChanged(peer, fence, grant))
        if hop.grant == grant:
            self._connect_successor(hop)

    # ---- opening

    def _on_open(self, peer: PeerId, message: Open) -> None:
        verdict = self._reception.ask(peer, message, self._now())
        if verdict.refused is not None:
            self._send(peer, verdict.refused)
        if verdict.held is not None:
            self._let_in([verdict.held])

    def _let_in(self, guests: Iterable[Guest]) -> None:
        for guest in guests:
            if guest.session not in self._sessions:
                self._hold(guest)
            grant = guest.grant
            self._send(guest.client, Held(grant.session, grant.route, guest.attempt))

    def _hold(self, guest: Guest) -> None:
        now = self._now()
        # Links have their own grace time before they report a client as lost: no second one here.
        hop = HopSession(
            guest.grant,
            guest.hop,
            now,
            lease_s=max(LEASE_S, guest.lease_ends - now),
            grace_s=0.0,
            keep_backup=self.backups.limit_bytes > 0,
            trim=lambda output, rows: own_copy(chosen_rows(output, rows)),
        )
        self._sessions[guest.session] = hop
        self._over.forget(guest.session)
        self._idle.clear()
        self._engine.reserve(guest.session, guest.grant.rows, guest.grant.length)

    def _connect_successor(self, hop: HopSession) -> None:
        """Opens the link to the next hop before the first step needs it."""
        index = hop.hop + 1
        if index >= len(hop.grant.hops):
            return
        assert self._outgoing is not None
        self._outgoing.prepare(PeerId(hop.grant.hops[index].peer))

    def _on_unreachable(self, peer: PeerId, reason: str) -> None:
        """Clients whose route goes on at this peer learn it; a client is told lost by its link."""
        for hop in list(self._sessions.values()):
            if peer != hop.client:
                self._handle(hop, PeerLost(peer, reason))

    def _on_full(self, session: SessionId, reason: str) -> None:
        """A message of the session could not be sent: this one ends, and its client learns it."""
        hop = self._sessions.get(session)
        if hop is not None:
            detail = f"session {session.hex()[:8]} at {self._hosting.me}: {reason}"
            self._handle(hop, Stopping(FailKind.PEER_LOST, detail))

    # ---- the engine's results

    def on_results(self, results: Sequence[EngineResult]) -> None:
        """What became of jobs; called in the loop's thread, once a pass."""
        for result in results:
            hop = self._sessions.get(result.job.session)
            if hop is not None and result.job.owner is hop:
                self._handle(hop, result_event(hop, result))

    # ---- instructions

    def _handle(self, hop: HopSession, event: Event) -> bool:
        """Whether something is computed because of it. One session's trouble reaches neither the
        link, which serves others, nor the clock of all sessions: this never raises."""
        try:
            instructions = hop.handle(event, self._now())
            self._perform(hop, instructions, event)
            if not hop.freed:
                self.backups.changed(hop)
            return any(isinstance(instruction, Compute) for instruction in instructions)
        except Exception:
            logger.exception("session %s failed", hop.grant.session.hex()[:8])
            self._give_up(hop)
            return False

    def _give_up(self, hop: HopSession) -> None:
        """Ends a session that failed, if that is not done yet; its room comes back in any case."""
        fault = Stopping(FailKind.INTERNAL, "an internal fault; see the server's log")
        try:
            try:
                self._perform(hop, hop.handle(fault, self._now()), fault)
            finally:
                self._free(hop, fault.detail)
        except Exception:
            logger.exception("session %s was not ended in order", hop.grant.session.hex()[:8])

    def _perform(self, hop: HopSession, instructions: list[Instruction], cause: Event) -> None:
        for instruction in instructions:
            match instruction:
                case Forward():
                    self._forward(hop, instruction)
                case Compute():
                    assert isinstance(cause, Received)
                    self._compute(hop, instruction, cause.sender)
                case Free():
                    if client_knows(instructions, cause):
                        self._over.add(SessionId(hop.grant.session))
                    self._free(hop, instruction.reason)
                case _:
                    raise AssertionError(f"{instruction} is no instruction for a hop")

    def _compute(self, hop: HopSession, compute: Compute, pusher: PeerId) -> None:
        try:
            job = engine_job(hop, compute, self._hosting.hidden_size)
        except StepRejectedError as error:
            detail = f"step {compute.step.epoch}/{compute.step.seq} from {pusher}: {error}"
            self._handle(hop, Stopping(FailKind.REJECTED, detail))
            return
        if compute.first_of_epoch:
            self._engine.cancel(job.session)
        self._engine.submit(job)

    def _forward(self, hop: HopSession, forward: Forward) -> None:
        message, buffers = outgoing_message(hop, forward)
        self._send(
            forward.to, message, buffers, forward.service_class, hop.grant.session, hop.client
        )

    def _send(
        self,
        peer: PeerId,
        message: Message,
        buffers: Sequence[memoryview] = (),
        service_class: ServiceClass = ServiceClass.CONTROL,
        session: bytes = b"",
        client: str = "",
    ) -> None:
        assert self._outgoing is not None
        self._outgoing.send(peer, message, buffers, service_class, session, client)

    def _free(self, hop: HopSession, reason: str) -> None:
        session = SessionId(hop.grant.session)
        if self._sessions.get(session) is not hop:
            return
        logger.debug("session %s: %s", session.hex()[:8], reason)
        del self._sessions[session]
        try:
            self.backups.forget(hop)
            self._engine.release(session)
        finally:
            self._let_in(self._reception.leave(session))
            if not self._sessions:
                self._idle.set()

    # ---- time

    def _now(self) -> float:
        assert self._loop is not None
        return self._loop.time()

    def _tick(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(TICK_S, self._tick)
        now = self._now()
        for hop in [hop for hop in self._sessions.values() if hop.deadline <= now]:
            self._handle(hop, Tick())
        if (unused := gives_way(self._sessions.values(), self.admission, now)) is not None:
            self._handle(unused, Stopping(FailKind.EXPIRED, farewell(unused, now)))
        held, refusals = self._reception.tick(now)
        for client, refused in refusals:
            self._send(client, refused)
        self._let_in(held)
