"""A session as one hop sees it: which frames it takes, what it holds, what it passes on."""

from typing import Any

import msgspec

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.answers import KeptAnswers, Trim, answer, replayed
from swarm.sessions.backup import Backup
from swarm.sessions.events import (
    Compute,
    Event,
    Forward,
    Free,
    Instruction,
    Leaving,
    PassDone,
    PassFailed,
    PeerLost,
    Received,
    RouteChanged,
    Stopping,
    Tick,
)
from swarm.sessions.grants import same_session
from swarm.sessions.lifetime import GRACE_S, LEASE_S, Lifetime
from swarm.sessions.messages import (
    MAX_STEP_TOKENS,
    MAX_UNANSWERED,
    Close,
    Commit,
    Fail,
    FailKind,
    Fence,
    Gap,
    Grant,
    Holds,
    Replay,
    RowOperation,
    Step,
)
from swarm.sessions.passes import Passes
from swarm.sessions.rules import (
    Lengths,
    added,
    applied,
    composed,
    lacks,
    operation_fault,
    shape_fault,
    tensor_fault,
)
from swarm.spans import PeerId, Span

__all__ = ["LEASE_S", "HopSession"]


class HopSession:
    """The server's side of one session, from `Held` to `Free`.

    Pure: `handle` takes what happened and returns what to do, in order. `held` counts the slots of
    each row whose K/V is committed: their pass ended and its epoch was still the session's.
    Frames of anybody but the client, the hop before and (for `Gap` and `Fail`) the hop behind are
    ignored. Everything that cannot be taken ends the session with a `Fail` to the client that
    says why; nothing is ever applied in part.
    """

    def __init__(
        self,
        grant: Grant,
        hop: int,
        now: float,
        *,
        lease_s: float = LEASE_S,
        grace_s: float = GRACE_S,
        keep_backup: bool = False,
        trim: Trim | None = None,
    ) -> None:
        """`trim`: makes of a pass's output what goes on of it; None: who sends it does.
        `keep_backup`: of what is pushed to the next hop; the last hop has none."""
        self.grant = grant
        self.hop = hop
        self.epoch = 0
        self.held: Lengths = ()
        self.freed = False
        self.used_at = now
        """When its last step came, or it was opened."""
        self._trim = trim
        self.backup = Backup(keep=keep_backup and hop + 1 < len(grant.hops))
        self._lifetime = Lifetime(now, grant.lifetime_s, lease_s, grace_s)
        self._next_seq = 0
        self._any_seq = False
        """A fence has begun the epoch: its first step here may have any number."""
        self._fenced = grant.route == 0
        """A hop that joins a running session takes no step before its first fence: what comes
        earlier was meant for an older session of the same id here."""
        self._rows_epoch = 0
        self._passes = Passes()
        self._kept = KeptAnswers()
        self._parents: Lengths | None = None
        """Forks that the engine has yet to be told of, composed."""
        self._engine_rows = False
        self._engine_told = True

    # ---- what others may look at

    @property
    def client(self) -> PeerId:
        return PeerId(self.grant.client)

    @property
    def blocks(self) -> Span:
        """The blocks that the route uses here, all of this server's or a part of them."""
        mine = self.grant.hops[self.hop]
        return Span(mine.start, mine.end)

    @property
    def expected(self) -> Lengths:
        """What will be held when every pass in the engine has ended."""
        return self._passes.added_to(self.held)

    @property
    def deadline(self) -> float:
        """When a `Tick` will next do something."""
        return self._lifetime.deadline

    @property
    def backup_bytes(self) -> int:
        """Of all that is kept to be sent again: a backup has the last answers too."""
        return self.backup.size_bytes() if self.backup.kept else self._kept.size_bytes

    def evict_backup(self) -> bool:
        """Whether there was one; the last answers go with it, or without it."""
        self._kept.drop()
        return self.backup.evict()

    # ---- events

    def handle(self, event: Event, now: float) -> list[Instruction]:
        if self.freed:
            return []
        match event:
            case Received():
                return self._received(event, now)
            case RouteChanged():
                return self._route_changed(event)
            case PassDone():
                return self._pass_done(event)
            case PassFailed():
                return self._pass_failed(event)
            case PeerLost():
                return self._peer_lost(event, now)
            case Stopping():
                return self._fail(event.why, event.detail)
            case Leaving():
                return [Forward(self.client, self._failure(FailKind.DRAINING, event.detail))]
            case Tick():
                return self._tick(now)

    def _received(self, event: Received, now: float) -> list[Instruction]:
        message = event.message
        from_client = event.sender == self.client
        if from_client:
            self._lifetime.client_seen()
        match message:
            case Step() if from_client or event.sender == self._neighbour(-1):
                self._lifetime.committed()
                self.used_at = now
                return self._step(message, event.payload, event.sender)
            case Gap() if event.sender == self._neighbour(1):
                return self._gap(message)
            case Fail() if event.sender == self._neighbour(1):
                blamed = message.peer or event.sender
                return [Forward(self.client, msgspec.structs.replace(message, peer=blamed))]
            case Commit() if from_client:
                self._lifetime.committed()
            case Close() if from_client:
                return self._free("closed by the client")
            case Fence() if from_client:
                self._lifetime.committed()
                if message.signed is not None:
                    return self._fail(FailKind.REJECTED, "a fence whose route was not checked")
                return self._fence(message)
            case Replay() if from_client:
                return self._replay(message)
        return []

    def _neighbour(self, offset: int) -> PeerId | None:
        index = self.hop + offset
        if 0 <= index < len(self.grant.hops):
            return PeerId(self.grant.hops[index].peer)
        return None

    # ---- steps

    def _step(self, step: Step, payload: Any, sender: PeerId) -> list[Instruction]:
        if step.epoch < self.epoch or not self._fenced:
            return []
        fault = shape_fault(step, self.grant)
        fault = fault or tensor_fault(step.tensors, sum(step.counts), self.grant.dtype)
        if fault is not None:
            return self._reject(step, fault)
        if step.epoch == self.epoch and step.seq < self._next_seq:
            return list(self._kept.again(step.seq))
        opens = step.epoch > self.epoch
        if step.seq != (0 if opens else self._next_seq) and (opens or not self._any_seq):
            return self._send_gap(step, sender)
        if not opens and step.operation is not None:
            return self._reject(step, "an operation in an epoch that has begun without it")
        before = self.held if opens else self.expected
        if step.operation is not None:
            fault = operation_fault(step.operation, len(before), self.grant.rows)
            if fault is not None:
                return self._reject(step, fault)
            if lacks(before, step.operation):
                return self._send_gap(step, sender)
        after = applied(before, step.operation) or (0,) * len(step.starts)
        if len(after) != len(step.starts):
            return self._reject(step, f"{len(step.starts)} rows where there are {len(after)}")
        if any(start > held for start, held in zip(step.starts, after, strict=True)):
            return self._send_gap(step, sender)
        if step.starts != after:
            return self._reject(step, f"starts at {step.starts} where {after} is held")
        if len(self._passes) >= MAX_UNANSWERED:
            return self._reject(step, f"more than {MAX_UNANSWERED} steps at once")
        if opens:
            self._raise_epoch(step.epoch, step.operation)
        self._rows_epoch = self.epoch
        self._any_seq = False
        self.held = self.held or (0,) * len(step.starts)
        self._next_seq = step.seq + 1
        return self._take(step, payload)

    def _take(self, step: Step, payload: Any) -> list[Instruction]:
        if not sum(step.counts):
            self._passes.take(step, PassDone(step.epoch, step.seq, None))
            return self._commit_passes()
        service_class = self._passes.take(step)
        first = not self._engine_told
        operation = None
        if first:
            operation = RowOperation(parents=self._parents, truncate_to=step.starts)
        self._parents, self._engine_told, self._engine_rows = None, True, True
        told = msgspec.structs.replace(step, operation=operation)
        return [Compute(told, payload, service_class, first)]

    def _raise_epoch(self, epoch: int, operation: RowOperation | None) -> None:
        """Forget what is under way, and apply the operation: this once."""
        self.epoch = epoch
        self._next_seq = 0
        self._any_seq = False
        self._passes.clear()
        self._kept.clear()
        self.backup.apply(operation)
        self.held = applied(self.held, operation)
        if self._engine_rows:
            self._engine_told = False
            if operation is not None:
                self._parents = composed(self._parents, operation.parents)

    def _pass_done(self, done: PassDone) -> list[Instruction]:
        if done.epoch != self.epoch:
            return []
        self._passes.ended(done)
        return self._commit_passes()

    def _commit_passes(self) -> list[Instruction]:
        """Commit and pass on, in order, what is done."""
        instructions: list[Instruction] = []
        for step, done, service_class in self._passes.committed():
            self.held = added(self.held, step.counts)
            self.backup.append(
                step.starts, step.counts, step.position_ids, done.output, done.output_bytes
            )
            forward = self._answer(step, done, service_class)
            self._kept.keep(forward)
            instructions.append(forward)
        return instructions

    def _answer(self, step: Step, done: PassDone, service_class: ServiceClass) -> Forward:
        return answer(step, done, service_class, self.grant, self.hop, self._trim)

    # ---- gaps and replays

    def _send_gap(self, step: Step, sender: PeerId) -> list[Instruction]:
        """Nothing is computed: say what is held and which step is missing."""
        seq = self._next_seq if step.epoch == self.epoch else 0
        gap = Gap(self.grant.session, step.epoch, self.hop, self.expected, seq)
        return [Forward(sender, gap)]

    def _gap(self, gap: Gap) -> list[Instruction]:
        """Push again what the next hop lacks, or let the client know that we cannot."""
        if gap.epoch != self.epoch:
            return []
        again = self._kept.since(gap.seq)
        return [Forward(self.client, gap)] if again is None else list(again)

    def _replay(self, replay: Replay) -> list[Instruction]:
        next_peer = self._neighbour(1)
        if replay.epoch != self.epoch or next_peer is None:
            return []
        if sum(replay.counts) > MAX_STEP_TOKENS:
            return self._fail(FailKind.REJECTED, f"{self._name()}: replays too much at once")
        forward = replayed(replay, self.backup, next_peer)
        if forward is None:
            # Evicted since the client asked: it plans anew when it sees what is left.
            return [self._holds()]
        self._kept.keep(forward)
        return [forward]

    # ---- fences

    def _fence(self, fence: Fence) -> list[Instruction]:
        if fence.epoch < self.epoch:
            return []
        self._fenced = True
        if fence.epoch > self.epoch:
            if fence.operation is not None:
                fault = operation_fault(fence.operation, len(self.held), self.grant.rows)
                if fault is None and lacks(self.held, fence.operation):
                    fault = f"keeps {fence.operation.truncate_to} where {self.held} is held"
                if fault is not None:
                    return self._fail(FailKind.REJECTED, f"fence {fence.epoch}: {fault}")
                self._rows_epoch = fence.epoch
            self._raise_epoch(fence.epoch, fence.operation)
            self._any_seq = True
        return [self._holds()]

    def _holds(self) -> Forward:
        session, begins = self.grant.session, self.backup.begins(self.held)
        holds = Holds(session, self.epoch, self.hop, self.expected, begins, self._rows_epoch)
        return Forward(self.client, holds)

    def _route_changed(self, event: RouteChanged) -> list[Instruction]:
        old, new, fence = self.grant, event.grant, event.fence
        if event.sender != self.client or fence.epoch < self.epoch:
            return []
        self._lifetime.client_seen()
        self._lifetime.committed()
        if new.route > old.route:
            if not same_session(old, self.hop, new, fence.hop):
                return self._fail(FailKind.REJECTED, f"route {new.route} changes the session")
            if fence.epoch == self.epoch:
                return self._fail(FailKind.REJECTED, f"route {new.route} without a new epoch")
            self.grant, self.hop = new, fence.hop
        return self._fence(fence)

    # ---- endings

    def _pass_failed(self, failed: PassFailed) -> list[Instruction]:
        if failed.epoch != self.epoch and failed.error.why is not FailKind.INTERNAL:
            return []
        return self._fail(failed.error.why, failed.error.detail)

    def _peer_lost(self, lost: PeerLost, now: float) -> list[Instruction]:
        if lost.peer == self.client:
            self._lifetime.client_lost(lost.detail, now)
        elif lost.peer == self._neighbour(1):
            # What is held here stays: the client may route around the lost hop.
            detail = f"{self._name()} lost its link to {lost.peer}: {lost.detail}"
            failure = self._failure(FailKind.PEER_LOST, detail)
            return [Forward(self.client, msgspec.structs.replace(failure, peer=lost.peer))]
        return []

    def _tick(self, now: float) -> list[Instruction]:
        if (why := self._lifetime.expired(now)) is not None:
            return self._fail(FailKind.EXPIRED, f"{self._name()}: {why}")
        if (why := self._lifetime.forsaken(now)) is not None:
            return self._free(why)
        return []

    def _reject(self, step: Step, fault: str) -> list[Instruction]:
        where = f"{self._name()}, step {step.epoch}/{step.seq}"
        return self._fail(FailKind.REJECTED, f"{where}: {fault}")

    def _fail(self, why: FailKind, detail: str) -> list[Instruction]:
        return [Forward(self.client, self._failure(why, detail)), *self._free(detail)]

    def _failure(self, why: FailKind, detail: str) -> Fail:
        return Fail(self.grant.session, self.hop, why, detail[:500])

    def _free(self, reason: str) -> list[Instruction]:
        self.freed = True
        self._passes.clear()
        self._kept.clear()
        self.backup.evict()
        return [Free(reason)]

    def _name(self) -> str:
        return f"session {self.grant.session.hex()[:8]} at hop {self.hop} ({self.blocks})"

    def validate(self) -> None:
        """Raises AssertionError if the state contradicts itself; for tests."""
        assert len(self.held) <= self.grant.rows
        assert all(0 <= held <= self.grant.length for held in self.expected)
        self._passes.validate(self.epoch, self._next_seq)
        assert self._engine_told or self._engine_rows
        assert not any(self.backup.begins(self.held) or ())
