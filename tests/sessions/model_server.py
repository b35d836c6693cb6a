"""Servers of the model check: real sessions and admission around a hash chain."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hash_chain import HashChain
from model_wire import BLOCKS, CHECKPOINT, Sent, materialize

from swarm.sessions.admission import Admission
from swarm.sessions.events import (
    Compute,
    Event,
    Forward,
    Free,
    Leaving,
    PassDone,
    PeerLost,
    Received,
    RouteChanged,
    Stopping,
    Tick,
)
from swarm.sessions.grants import check_grant
from swarm.sessions.hop import LEASE_S, HopSession
from swarm.sessions.messages import (
    Close,
    Commit,
    Fail,
    FailKind,
    Fence,
    Grant,
    Held,
    Message,
    Open,
    Refused,
    RefuseKind,
    Replay,
    Step,
    decode_grant,
)
from swarm.spans import PeerId, SessionId, Span


@dataclass
class Running:
    """A session on a server: its rules, its cache, what its passes were asked for."""

    session: HopSession
    chain: HashChain
    counts: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)


class ModelServer:
    """A server that can host every block."""

    def __init__(
        self,
        peer: PeerId,
        *,
        capacity_tokens: int,
        hop_class: type[HopSession] = HopSession,
        strict: bool = True,
        keep_backup: bool = True,
    ) -> None:
        self.peer = peer
        self.admission = Admission(capacity_tokens, page_tokens=4)
        self.running: dict[SessionId, Running] = {}
        self.passes: deque[tuple[Running, Compute]] = deque()
        self._asked: dict[SessionId, tuple[Open, Grant, PeerId, float]] = {}
        self.draining = False
        self._hop_class = hop_class
        self._strict = strict
        self._keep_backup = keep_backup

    def receive(self, sender: PeerId, message: Message, payload: Any, now: float) -> list[Sent]:
        if isinstance(message, Open):
            return self._open(sender, message, now)
        session = SessionId(message.session)  # type: ignore[union-attr]
        running = self.running.get(session)
        if running is None:
            if isinstance(message, Close):
                return self._release(session, now)
            if isinstance(message, Step | Commit | Fence | Replay):
                fail = Fail(session, 0, FailKind.UNKNOWN_SESSION, f"{self.peer} does not know it")
                return [(sender, fail, [])]
            return []
        event: Event = Received(sender, message, payload)
        if isinstance(message, Fence) and message.signed is not None:
            event = RouteChanged(sender, message, decode_grant(message.signed.grant))
        return self._handle(session, event, now)

    def drain(self, now: float) -> list[Sent]:
        """From now on nobody is let in; whoever is inside is asked to go."""
        self.draining = True
        sent: list[Sent] = []
        for session in list(self.running):
            sent += self._handle(session, Leaving("it drains"), now)
        return sent

    def stop(self, now: float) -> list[Sent]:
        sent: list[Sent] = []
        for session in list(self.running):
            sent += self._handle(session, Stopping(FailKind.SHUTTING_DOWN, "it leaves"), now)
        return sent

    def lose(self, peer: PeerId, now: float) -> list[Sent]:
        sent: list[Sent] = []
        for session in list(self.running):
            sent += self._handle(session, PeerLost(peer, "cut"), now)
        for session, (_, _, client, _) in list(self._asked.items()):
            if client == peer and session not in self.running:
                sent += self._release(session, now)
        return sent

    def tick(self, now: float) -> list[Sent]:
        sent: list[Sent] = []
        for session in list(self.running):
            sent += self._handle(session, Tick(), now)
        decision = self.admission.tick(now)
        for session in decision.expired:
            sent.append(self._refuse(session, RefuseKind.CACHE_FULL, "waited in vain"))
        return sent + self._admitted(decision.admitted, now)

    def compute(self, now: float) -> list[Sent]:
        """The engine does its next pass."""
        running, asked = self.passes.popleft()
        session = SessionId(running.session.grant.session)
        if self.running.get(session) is not running:
            return []
        step = asked.step
        if asked.first_of_epoch:
            assert step.operation is not None
            running.chain.apply(step.operation.parents, step.operation.truncate_to)
        else:
            assert step.operation is None
        output = running.chain.forward(step.starts, step.counts, step.position_ids, asked.payload)
        done = PassDone(step.epoch, step.seq, output, output_bytes=8 * len(output))
        return self._handle(session, done, now)

    @property
    def deadline(self) -> float | None:
        deadlines = [running.session.deadline for running in self.running.values()]
        if self.admission.deadline is not None:
            deadlines.append(self.admission.deadline)
        return min(deadlines, default=None)

    def _open(self, sender: PeerId, message: Open, now: float) -> list[Sent]:
        grant = decode_grant(message.signed.grant)
        session = SessionId(grant.session)
        running = self.running.get(session)
        if running is not None and running.session.grant != grant:
            why, free = RefuseKind.BAD_GRANT, self.admission.free_tokens
            refused = Refused(session, grant.route, why, "other grant", free, message.attempt)
            return [(sender, refused, [])]
        self._asked[session] = (message, grant, sender, now)
        why = check_grant(grant, message.hop, self.peer, Span(0, BLOCKS), CHECKPOINT, sender)
        if why is None and self.draining:
            why = RefuseKind.DRAINING, "it drains"
        if why is not None:
            return [self._refuse(session, *why)]
        tokens = self.admission.tokens_of(grant)
        admitted = self.admission.request(
            session, tokens, message.wait_s, now, repair=grant.route > 0
        )
        if admitted is False:
            return [self._refuse(session, RefuseKind.CACHE_FULL, "full")]
        return self._admitted((session,) if admitted else (), now)

    def _admitted(self, sessions: tuple[SessionId, ...], now: float) -> list[Sent]:
        sent: list[Sent] = []
        for session in sessions:
            message, grant, client, asked_at = self._asked[session]
            if session not in self.running:
                left = max(0.0, asked_at + message.wait_s - now)
                hop = self._hop_class(
                    grant, message.hop, now, lease_s=LEASE_S + left, keep_backup=self._keep_backup
                )
                blocks = grant.hops[message.hop]
                chain = HashChain(blocks.start, blocks.end, strict=self._strict)
                self.running[session] = Running(hop, chain)
            sent.append((client, Held(session, grant.route, message.attempt), []))
        return sent

    def _refuse(self, session: SessionId, why: RefuseKind, detail: str) -> Sent:
        message, grant, client, _ = self._asked.pop(session)
        free = self.admission.free_tokens
        return client, Refused(session, grant.route, why, detail, free, message.attempt), []

    def _handle(self, session: SessionId, event: Event, now: float) -> list[Sent]:
        running = self.running[session]
        sent: list[Sent] = []
        for instruction in running.session.handle(event, now):
            match instruction:
                case Compute(step=step):
                    running.counts[step.epoch, step.seq] = step.counts
                    self.passes.append((running, instruction))
                case Forward(message=message):
                    key = (getattr(message, "epoch", 0), getattr(message, "seq", 0))
                    sent.append(materialize(instruction, running.counts.get(key, ())))
                case Free():
                    sent += self._release(session, now)
                case _:
                    raise AssertionError(instruction)
        if session in self.running and self._strict:
            running.session.validate()
        self.admission.validate()
        return sent

    def _release(self, session: SessionId, now: float) -> list[Sent]:
        self.running.pop(session, None)
        self._asked.pop(session, None)
        return self._admitted(self.admission.release(session).admitted, now)
