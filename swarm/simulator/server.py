"""A server on the virtual clock: its line for room, its queue, and its passes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from swarm.routing.performance import ServerSpeed
from swarm.routing.view import Release, ServerState, ServerView
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.fair_queue import Entry, FairQueue
from swarm.scheduling.gathering import Gathering
from swarm.sessions.admission import Admission, Decision
from swarm.sessions.messages import Held, Message, Open, Refused, RefuseKind
from swarm.simulator.clock import Clock
from swarm.simulator.host import Cores
from swarm.simulator.steps import Step
from swarm.spans import PeerId, SessionId

_QUEUE_WEIGHT = 0.1
"""Of the newest pass in the wait that is announced, as in the engine."""


class Caller(Protocol):
    """A session that opens."""

    def answered(self, sender: PeerId, message: Message) -> None:
        """The answer has arrived."""


@dataclass(frozen=True)
class Call:
    """A session that asks for room."""

    caller: Caller
    session: SessionId
    client: PeerId
    message: Open
    tokens: int
    """In the unit of the server's cache."""
    ends_after_s: float
    """How long it is expected to last."""
    delay_s: float
    """Of the answer."""


class SimulatedServer:
    """What `swarm-server` does with sessions and steps, without computing anything."""

    def __init__(
        self,
        clock: Clock,
        view: ServerView,
        speed: ServerSpeed,
        cores: Cores,
        *,
        pass_tokens: int,
        lie: float = 1.0,
    ) -> None:
        """`view`: as it would truly announce itself when it is idle; `lie`: how many times as fast
        it says it is."""
        self.peer = view.peer
        self.span = view.span
        self.state = view.state
        self.came = clock.now
        self.left: float | None = None
        self.unreachable = False
        self.slowed = 1.0
        self.block_s = speed.block_s
        self.busy_s = 0.0
        self.passes = 0
        self.decode_blocks = 0
        """Decoded tokens times the blocks that they went through here."""
        self._clock = clock
        self._truth = view
        self._speed = speed
        self._cores = cores
        self._pass_tokens = pass_tokens
        self._lie = lie
        self._queue: FairQueue[Step] = FairQueue()
        self._gathering = Gathering()
        self._admission = Admission(view.cache_tokens_total)
        self._line: dict[SessionId, Call] = {}
        self._rooms: dict[SessionId, tuple[int, float]] = {}
        """Cache of each session, and when it is expected to end."""
        self._busy = False
        self._frozen = False
        self._asked_again_at = -1.0
        self._queue_wait_s = 0.0
        self._held_back: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        """What happens when it is reached again."""

    # ---- what others see

    def announced(self, *, releases: bool) -> ServerView:
        """Its record now; `releases`: with when its sessions are expected to end."""
        truth, lie, now = self._truth, self._lie, self._clock.now
        ends = sorted((max(0.0, end - now), tokens) for tokens, end in self._rooms.values())
        return replace(
            truth,
            state=self.state,
            cache_tokens_free=self._admission.free_tokens,
            sessions=len(self._rooms),
            queue_wait_ms=1e3 * self._queue_wait_s / lie,
            decode_ms_per_block=truth.decode_ms_per_block / lie,
            decode_fixed_ms=truth.decode_fixed_ms / lie,
            decode_row_ms_per_block=truth.decode_row_ms_per_block / lie,
            prefill_tokens_per_s=truth.prefill_tokens_per_s * lie,
            releases=tuple(Release(after_s, tokens) for after_s, tokens in ends)
            if releases
            else (),
        )

    @property
    def gone(self) -> bool:
        """It will not be back; another one may come under its name."""
        return self.left is not None

    @property
    def idle(self) -> bool:
        """Nobody has room here or waits for it."""
        return not self._rooms and not self._line

    # ---- sessions

    def open(self, call: Call) -> None:
        """`Open` has arrived."""
        if self.gone or self._put_off(self.open, call):
            return
        hop = call.message.hop
        if self.state is not ServerState.ONLINE:
            self._refuse(call, RefuseKind.DRAINING, f"it is {self.state}")
            return
        admitted = self._admission.request(
            call.session, call.tokens, call.message.wait_s, self._clock.now, call.client
        )
        if admitted:
            self._hold(call)
        elif admitted is None:
            self._line[call.session] = call
            self._clock.after(call.message.wait_s, self._tick)
        else:
            free = self._admission.free_tokens
            detail = f"hop {hop} needs {call.tokens} tokens of cache, and {free} are free"
            self._refuse(call, RefuseKind.CACHE_FULL, detail)

    def release(self, session: SessionId) -> None:
        """`Close` has arrived."""
        if self.gone or self._put_off(self.release, session):
            return
        self._queue.remove_session(session)
        self._gathering.session_ended(session)
        self._rooms.pop(session, None)
        self._line.pop(session, None)
        self._decided(self._admission.release(session))

    def knows(self, session: SessionId) -> bool:
        """Whether it still holds the session's cache."""
        return not self.gone and session in self._rooms

    def forget_steps(self, session: SessionId) -> None:
        """The session has begun a new epoch: what waits of it is not computed."""
        self._queue.remove_session(session)

    def _hold(self, call: Call) -> None:
        self._rooms[call.session] = (call.tokens, self._clock.now + call.ends_after_s)
        open_ = call.message
        self._answer(call, Held(call.session, 0, open_.attempt))

    def _refuse(self, call: Call, why: RefuseKind, detail: str) -> None:
        free = self._admission.free_tokens
        self._answer(call, Refused(call.session, 0, why, detail, free, call.message.attempt))

    def _answer(self, call: Call, message: Message) -> None:
        self._clock.after(call.delay_s, call.caller.answered, self.peer, message)

    def _tick(self) -> None:
        if not self.gone:
            self._decided(self._admission.tick(self._clock.now))

    def _decided(self, decision: Decision) -> None:
        for session in decision.admitted:
            call = self._line.pop(session, None)
            if call is not None:
                self._hold(call)
        for session in decision.expired:
            call = self._line.pop(session, None)
            if call is not None:
                self._refuse(call, RefuseKind.CACHE_FULL, "no room came free in time")

    # ---- faults

    def vanish(self) -> None:
        """Everything here is lost."""
        self.left = self._clock.now
        self.state = ServerState.OFFLINE
        self._queue.drain()
        self._rooms.clear()
        self._line.clear()
        self._held_back.clear()

    def cut_off(self, *, frozen: bool) -> None:
        """Nothing arrives and nothing leaves; `frozen`: nothing is computed either."""
        self.unreachable = True
        self._frozen = self._frozen or frozen

    def reach_again(self) -> None:
        """What waited on both sides comes now."""
        self.unreachable = self._frozen = False
        held_back, self._held_back = self._held_back, []
        for action, arguments in held_back:
            self._clock.after(0.0, action, *arguments)
        self._clock.after(0.0, self._begin)

    def _put_off(self, action: Callable[..., None], *arguments: object) -> bool:
        if self.unreachable:
            self._held_back.append((action, arguments))
        return self.unreachable

    # ---- passes

    def receive(self, step: Step) -> None:
        """A step has arrived."""
        if self.gone or step.epoch != step.session.epoch or self._put_off(self.receive, step):
            return
        now = self._clock.now
        step.waits_since = now
        session = step.session
        self._queue.push(
            Entry(step, step.service_class, session.client, session.id, step.tokens), now
        )
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        if self._busy or self._frozen or self.gone or not self._queue:
            return
        now = self._clock.now
        if self._cores.shared and self._gathers(now):
            return
        batch: list[Step] = []
        self._join(batch, ServiceClass.CONTROL, ServiceClass.DECODE, now)
        self._join(batch, ServiceClass.REPAIR, ServiceClass.BULK, now)
        self._queue.release(now)
        if not batch:
            return
        self._busy = True
        waited_s = sum(now - step.waits_since for step in batch) / len(batch)
        self._queue_wait_s += _QUEUE_WEIGHT * (waited_s - self._queue_wait_s)
        work_s = self._work_s(batch) * self.slowed
        self._cores.start(work_s, lambda: self._passed(batch, now, work_s))

    def _gathers(self, now: float) -> bool:
        """Whether to wait for more decode rows; then it is asked again."""
        if any(self._queue.cost(each) for each in ServiceClass if each > ServiceClass.DECODE):
            return False
        waited_s = now - self._queue.since(ServiceClass.DECODE)
        until = now + self._gathering.wait_s(len(self._queue), waited_s, now)
        if until <= now:  # also of a rest that is too small for the clock to tell
            return False
        if until != self._asked_again_at:
            self._asked_again_at = until
            self._clock.at(until, self._begin)
        return True

    def _join(self, batch: list[Step], best: ServiceClass, last: ServiceClass, now: float) -> None:
        """As the engine does: the first step always, further ones within the budget of tokens."""
        queue, tokens = self._queue, 0
        while (entry := queue.peek(now, best, last)) is not None:
            if tokens and tokens + entry.cost > self._pass_tokens:
                return
            tokens += entry.cost
            queue.serve(entry, entry.cost, now)
            queue.hold(entry)
            queue.finish(entry, now)
            batch.append(entry.item)

    def _work_s(self, batch: list[Step]) -> float:
        """Processor time; steps over different parts of the span are computed one part after the
        other."""
        speed = self._speed
        parts: dict[tuple[int, int], list[Step]] = {}
        for step in batch:
            hop = step.stages[step.at].hop
            parts.setdefault((hop.start, hop.end), []).append(step)
        total_s = 0.0
        for (start, end), steps in parts.items():
            blocks, rows, context, prompt = end - start, 0, 0, 0
            for step in steps:
                if step.service_class is ServiceClass.DECODE:
                    rows += 1
                    context += step.context
                else:
                    prompt += step.tokens
            self.decode_blocks += rows * blocks
            if rows:
                total_s += speed.decode_s(blocks, rows, context)
                total_s += blocks * speed.prefill_per_block_s(prompt) if prompt else 0.0
            else:
                total_s += speed.prefill_s(blocks, prompt)
        return total_s

    def _passed(self, batch: list[Step], began: float, work_s: float) -> None:
        if self.gone or (self._frozen and self._put_off(self._passed, batch, began, work_s)):
            return
        now = self._clock.now
        self._busy = False
        self.passes += 1
        self.busy_s += now - began
        if self._cores.shared:
            decoding = [
                step.session.id for step in batch if step.service_class is ServiceClass.DECODE
            ]
            if decoding:
                self._gathering.pass_ended(decoding, now - began, work_s, now)
        for step in batch:
            self._emit(step)
        self._begin()

    def _emit(self, step: Step) -> None:
        if not self._put_off(self._emit, step):
            step.session.computed(step)
