"""A session as its client sees it: steps in order, a window, epochs, and re-routes."""

from collections import deque
from dataclasses import replace
from itertools import takewhile
from typing import Any

import msgspec

from swarm.errors import SessionLostError, StepRejectedError, SwarmError
from swarm.scheduling.classes import ServiceClass
from swarm.sessions import failures
from swarm.sessions.answers import MAX_GAPS
from swarm.sessions.asked import Asked, check_operation, check_step
from swarm.sessions.backup import Backup
from swarm.sessions.events import (
    Deliver,
    Event,
    Forward,
    Instruction,
    NeedsRoute,
    PeerLost,
    Raise,
    Received,
    ShouldMove,
    Tick,
)
from swarm.sessions.messages import (
    Close,
    Fail,
    FailKind,
    Gap,
    Grant,
    Holds,
    Output,
    RowOperation,
    SignedGrant,
    Step,
    Want,
)
from swarm.sessions.repair import Applied
from swarm.sessions.rerouting import Rerouting
from swarm.sessions.rules import Lengths, added, applied, service_class_of
from swarm.spans import PeerId

MAX_REPAIRS = 3
"""Repairs without a single answer between them, before the session is given up."""
STEP_DEADLINE_S = 60.0
"""How long the chain may be silent while the client waits for it."""


class ClientSession:
    """The client's side of one open session.

    `step` takes activations for new slots and gives a ticket; `Deliver` names the ticket when its
    answer is there. At most `window` steps are unanswered in the chain; the others wait here. A
    step with an operation begins a new epoch and waits until everything before it is answered.
    If the session cannot go on, `Raise` comes once, after `Close` to every hop. With `can_reroute`
    the loss of a hop is reported by `NeedsRoute` instead, and the session rests until `reroute`. A
    hop that is about to leave is reported by `ShouldMove`, and the session goes on meanwhile.

    `held`: the slots of each row that every hop holds, because their step is answered. `planned`:
    the same with the steps that are unanswered or wait.

    Pure: `step` and `handle` return what is to be done, in order.
    """

    def __init__(
        self,
        grant: Grant,
        *,
        window: int = 4,
        rest_s: float = STEP_DEADLINE_S,
        can_reroute: bool = False,
    ) -> None:
        """`rest_s`: how long the session may wait for a new route."""
        self.grant = grant
        self.epoch = 0
        self.held: Lengths = ()
        self.planned: Lengths = ()
        self.error: SwarmError | None = None
        self._window = window
        self.deadline_s = STEP_DEADLINE_S
        """How long the chain may be silent; set anew where the hops need another time."""
        self._rest_s = rest_s
        self._closed = False
        self._next_seq = 0
        self._next_ticket = 0
        self._queue: deque[Asked] = deque()
        self._unanswered: deque[Asked] = deque()
        self._operations: list[Applied] = []
        """Sent, and not yet known to be applied by every hop."""
        self._inputs = Backup(keep=True)
        self._rerouting: Rerouting | None = None
        self._left: set[str] = set()
        """Peers of earlier routes that hold the session still."""
        self._laggard: PeerId | None = None
        """Who had a step that was not answered, when all hops were asked last."""
        self._can_reroute = can_reroute
        self._resting = False
        """A hop is lost, and no new route has come yet."""
        self._repairs_in_vain = 0
        self._gaps_filled = 0
        """Since the last answer; a small frame must not buy megabytes."""
        self._quiet_since = 0.0

    @property
    def idle(self) -> bool:
        """Nothing is awaited from the chain."""
        return not self._unanswered and self._rerouting is None and not self._resting

    @property
    def deadline(self) -> float | None:
        """When a `Tick` will next do something."""
        if self.idle or self._closed:
            return None
        return self._quiet_since + (self._rest_s if self._resting else self.deadline_s)

    def waited_s(self, now: float) -> float:
        """How long nothing has come while a decode step is unanswered and no repair goes on."""
        if not self._unanswered or self._rerouting is not None or self._resting:
            return 0.0
        step = self._unanswered[0].step
        if service_class_of(step) is not ServiceClass.DECODE:
            return 0.0
        return now - self._quiet_since

    @property
    def suspect(self) -> PeerId | None:
        """After `reroute` over the same hops because a step was late: who seems to keep it."""
        if self._rerouting is not None:
            return self._rerouting.silent or self._rerouting.laggard
        return self._laggard

    # ---- what the user does

    def step(
        self,
        counts: Lengths,
        position_ids: tuple[int, ...],
        want: Want,
        payload: Any,
        *,
        now: float,
        operation: RowOperation | None = None,
        size_bytes: int = 0,
        horizon: int = 0,
    ) -> tuple[int, list[Instruction]]:
        """Extend row r by `counts[r]` tokens, after `operation`; give the ticket of the answer.

        `payload`: activations `[sum(counts), hidden_size]`, opaque here; `position_ids`: of each
        token; `horizon`: as in `Step`. The first step makes as many rows as it has counts; only
        `operation.parents` changes their number. Raises SessionClosedError, SessionFullError,
        StepRejectedError; the session is then as it was before.
        """
        self._check_open()
        if operation is not None:
            check_operation(self.grant, self.planned, operation)
        starts = applied(self.planned, operation) or (0,) * len(counts)
        step = Step(
            session=self.grant.session,
            epoch=0,
            seq=0,
            starts=starts,
            counts=counts,
            position_ids=position_ids,
            emit_from=(),
            want=want,
            tensors=(),
            operation=operation,
            horizon=horizon,
        )
        check_step(self.grant, step)
        self.planned = added(starts, counts)
        self._next_ticket += 1
        self._queue.append(Asked(self._next_ticket, step, payload, size_bytes))
        return self._next_ticket, self._send_queued(now)

    def reroute(self, grant: Grant, signed: SignedGrant | None, now: float) -> list[Instruction]:
        """Go on over the hops of `grant`, which hold the session already (see `Opening`).

        Hops that are left get `Close` once the new ones hold everything, so that a server that
        leaves can tell when the next session may move. The caller may send them one too. `signed`
        None: the route stays, and only what its hops hold is repaired. Everything that is
        unanswered is computed again; nothing that was answered is.
        """
        self._check_open()
        self._left |= {hop.peer for hop in self.grant.hops}
        self._left -= {hop.peer for hop in grant.hops}
        self.grant = grant
        self._resting = False
        self._queue.extendleft(asked.without_operation() for asked in reversed(self._unanswered))
        self._unanswered.clear()
        self._inputs.apply(RowOperation(truncate_to=self.held) if self.held else None)
        if self._rerouting is not None:
            self.epoch = self._rerouting.epoch
        self._rerouting = Rerouting(
            grant, signed, self.epoch, self.held, self._operations, self._inputs, self._window
        )
        self._quiet_since = now
        return self._rerouting.start()

    def close_left(self) -> list[Instruction]:
        """Ends it on the hops of earlier routes: before one of them may be opened anew."""
        left, self._left = sorted(self._left), set()
        return [Forward(PeerId(peer), Close(self.grant.session)) for peer in left]

    def close(self) -> list[Instruction]:
        """Free the session on every hop; nothing more is delivered or raised."""
        if self._closed:
            return []
        self._closed = True
        self._queue.clear()
        self._unanswered.clear()
        self._rerouting = None
        self._inputs.evict()
        self._left |= {hop.peer for hop in self.grant.hops}
        return self.close_left()

    # ---- what comes from the hops

    def handle(self, event: Event, now: float) -> list[Instruction]:
        if self._closed:
            return []
        match event:
            case Received(sender, Output() as output, payload):
                return self._on_output(sender, output, payload, now)
            case Received(sender, Holds() as holds) if self._rerouting is not None:
                return self._on_holds(sender, holds, now)
            case Received(sender, Gap() as gap):
                return self._on_gap(sender, gap, now)
            case Received(sender, Fail() as fail) if self._is_hop(sender):
                return self._on_fail(sender, fail, now)
            case PeerLost(peer, detail) if self._is_hop(peer):
                lost = f"the link to {peer} is lost: {detail}"
                return self._on_lost(
                    peer, failures.hop_error(self.grant, SessionLostError, peer, lost), now
                )
            case Tick() if self.deadline is not None and now >= self.deadline:
                return self._raise(self._timed_out())
            case _:
                return []

    def _on_output(
        self, sender: PeerId, output: Output, payload: Any, now: float
    ) -> list[Instruction]:
        if self._rerouting is not None:
            return self._after_repair(self._rerouting.on_output(sender, output), now)
        last = self.grant.hops[-1]
        if sender != last.peer or output.epoch != self.epoch or not self._unanswered:
            return []
        asked = self._unanswered[0]
        if output.seq != asked.step.seq:
            # Lower: an answer that came twice. Higher: one was lost on its way.
            return self._repair(now) if output.seq > asked.step.seq else []
        fault = asked.answer_fault(output, len(self.grant.hops) - 1)
        if fault is not None:
            text = f"{sender} answered {fault}"
            return self._raise(failures.hop_error(self.grant, StepRejectedError, sender, text))
        self._unanswered.popleft()
        self._quiet_since = now
        self._repairs_in_vain = self._gaps_filled = 0
        self._operations.clear()
        self.held = added(asked.step.starts, asked.step.counts)
        return [Deliver(asked.ticket, output, payload), *self._send_queued(now)]

    def _on_holds(self, sender: PeerId, holds: Holds, now: float) -> list[Instruction]:
        assert self._rerouting is not None
        if self._rerouting.source_failed(sender, holds):
            return self._repair(now)
        try:
            instructions = self._rerouting.on_holds(sender, holds)
        except SessionLostError as error:
            return self._raise(error)
        return self._after_repair(instructions, now)

    def _after_repair(self, instructions: list[Instruction], now: float) -> list[Instruction]:
        rerouting = self._rerouting
        assert rerouting is not None
        if rerouting.heard:  # what nobody waits for is no sign of life
            rerouting.heard, self._quiet_since = False, now
        if not rerouting.finished:
            return instructions
        # Refills have used up numbers of this epoch on some hops only: steps begin a new one.
        self.epoch, self._next_seq = rerouting.epoch + 1, 0
        self._laggard = rerouting.laggard
        self._rerouting = None
        self._operations.clear()
        return [*instructions, *self.close_left(), *self._send_queued(now)]

    def _on_gap(self, sender: PeerId, gap: Gap, now: float) -> list[Instruction]:
        epoch = self.epoch if self._rerouting is None else self._rerouting.epoch
        if gap.epoch != epoch or not self._is_hop(sender) or self._resting:
            return []
        lost = [asked for asked in self._unanswered if asked.step.seq >= gap.seq]
        first = self.grant.hops[0].peer
        found = lost and lost[0].step.seq == gap.seq
        if sender == first and gap.hop == 0 and found and self._gaps_filled < MAX_GAPS:
            self._gaps_filled += 1
            return [self._push(asked) for asked in lost]
        return self._repair(now)

    def _repair(self, now: float) -> list[Instruction]:
        """A frame is lost that nobody keeps: find out who holds what, and go on from there."""
        self._repairs_in_vain += 1
        if self._repairs_in_vain > MAX_REPAIRS:
            text = f"frames were lost again after {MAX_REPAIRS} repairs"
            return self._raise(
                failures.hop_error(self.grant, SessionLostError, self.grant.hops[-1].peer, text)
            )
        return self.reroute(self.grant, None, now)

    def _on_fail(self, sender: PeerId, fail: Fail, now: float) -> list[Instruction]:
        if fail.peer and not self._is_hop(PeerId(fail.peer)):
            return []
        if fail.why is FailKind.DRAINING:
            return [ShouldMove(sender, fail.detail)]
        error = failures.reported(self.grant, sender, fail)
        if isinstance(error, SessionLostError) and fail.why is not FailKind.EXPIRED:
            return self._on_lost(PeerId(fail.peer or sender), error, now)
        return self._raise(error)

    def _on_lost(self, peer: PeerId, error: SwarmError, now: float) -> list[Instruction]:
        if not self._can_reroute:
            return self._raise(error)
        if not self._resting:
            self._resting, self._quiet_since = True, now
        return [*self.close_left(), NeedsRoute(peer, error)]

    # ---- sending

    def _send_queued(self, now: float) -> list[Instruction]:
        instructions: list[Instruction] = []
        while self._queue and self._may_send(self._queue[0].step):
            if not self._unanswered:
                self._quiet_since = now
            asked = self._queue.popleft()
            step = asked.step
            if step.operation is not None:
                self.epoch, self._next_seq = self.epoch + 1, 0
                whole = RowOperation(parents=step.operation.parents, truncate_to=step.starts)
                self._operations.append(Applied(self.epoch, whole))
                self._inputs.apply(whole)
                self.held = step.starts
            self.held = self.held or step.starts
            step = msgspec.structs.replace(step, epoch=self.epoch, seq=self._next_seq)
            asked = replace(asked, step=step)
            self._next_seq += 1
            self._inputs.append(
                step.starts, step.counts, step.position_ids, asked.payload, asked.size_bytes
            )
            self._unanswered.append(asked)
            instructions.append(self._push(asked))
        return instructions

    def _may_send(self, step: Step) -> bool:
        if self._rerouting is not None or self._resting:
            return False
        if step.operation is not None:
            return not self._unanswered
        return len(self._unanswered) < self._window

    def _push(self, asked: Asked) -> Forward:
        before = takewhile(lambda other: other is not asked, self._unanswered)
        service_class = service_class_of(asked.step, (other.step for other in before))
        first = PeerId(self.grant.hops[0].peer)
        return Forward(first, asked.step, asked.payload, service_class=service_class)

    # ---- errors

    def _is_hop(self, peer: PeerId) -> bool:
        return any(hop.peer == peer for hop in self.grant.hops)

    def _check_open(self) -> None:
        if self._closed:
            raise failures.closed(self.grant, self.error) from self.error

    def _timed_out(self) -> SwarmError:
        if self._resting:
            return failures.timed_out(self.grant, self._rest_s, "a new route")
        return failures.timed_out(self.grant, self.deadline_s, "an answer")

    def _raise(self, error: SwarmError) -> list[Instruction]:
        closes = self.close()
        self.error = error
        return [*closes, Raise(error)]

    def validate(self) -> None:
        """Raises AssertionError if the state contradicts itself; for tests."""
        assert len(self._unanswered) <= self._window
        lengths = self.held
        for asked in self._unanswered:
            assert asked.step.starts == lengths
            lengths = added(lengths, asked.step.counts)
        for asked in self._queue:
            lengths = added(
                applied(lengths, asked.step.operation) or asked.step.starts, asked.step.counts
            )
        assert self._closed or lengths == self.planned
