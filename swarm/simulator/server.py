"""A server on the virtual clock: its line for room, its queue, and its passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from swarm.routing.performance import ServerSpeed
from swarm.routing.view import Release, ServerState, ServerView
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.cost_model import PROMPT_TOKENS, CostModel, PassSize
from swarm.scheduling.decode_groups import DecodeGroups
from swarm.scheduling.fair_queue import Entry, FairQueue
from swarm.scheduling.pass_planner import PassPlanner, Share
from swarm.sessions.admission import Admission, Decision
from swarm.sessions.messages import Held, Hop, Message, Open, Refused, RefuseKind
from swarm.simulator.clock import Clock
from swarm.simulator.host import Cores
from swarm.simulator.steps import Step
from swarm.spans import PeerId, SessionId

_QUEUE_WEIGHT = 0.1
"""Of the newest pass in the wait that is announced, as in the engine."""
_NOTHING_NEW = 0.02
"""A pass that takes so nearly what was predicted teaches nothing: an equation that holds already
does not move the least squares. Learning from each would be much of a simulation's time."""
_MIN_S = 1e-6
"""A cost model divides by what passes take, and those of an inventory may take no time."""
Shares = Sequence[Share[Step]]


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
        self.broken = False
        """Unreachable, and others notice: its links broke."""
        self.still_announced = False
        """Unreachable, and its record says nothing of it."""
        self.refuses = False
        self.wrong = False
        """What it computes is no number."""
        self.at_next_pass: Callable[[], None] | None = None
        """Happens in the middle of it."""
        self.slowed = 1.0
        self.block_s = speed.block_s
        self.busy_s = 0.0
        self.passes = 0
        self.decode_blocks = 0
        """Decoded tokens times the blocks that they went through here."""
        self.cores = cores
        self._clock = clock
        self._truth = view
        self._speed = speed
        self._lie = lie
        self._queue: FairQueue[Step] = FairQueue()
        self._costs = _first_guess(speed, len(view.span))
        self._planner = PassPlanner(self._queue, self._costs, max_tokens=pass_tokens)
        self._groups = DecodeGroups(self._costs.decode_s)
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
        if self.gone:
            return
        if self.unreachable:
            self._put_off(self.open, call)
            return
        hop = call.message.hop
        if self.state is not ServerState.ONLINE:
            self._refuse(call, RefuseKind.DRAINING, f"it is {self.state}")
            return
        if self.refuses:
            self._refuse(call, RefuseKind.QUOTA, "it was told to refuse")
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
        if self.gone:
            return
        if self.unreachable:
            self._put_off(self.release, session)
            return
        self._queue.remove_session(session)
        self._groups.session_ended(session)
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

    def cut_off(self, *, frozen: bool, broken: bool = False, announced: bool = False) -> None:
        """Nothing arrives and nothing leaves; `frozen`: nothing is computed either; `broken` and
        `announced`: what others see of it."""
        self.unreachable = True
        self.broken = broken
        self.still_announced = announced
        self._frozen = self._frozen or frozen

    def reach_again(self) -> None:
        """What waited on both sides comes now."""
        self.unreachable = self.broken = self.still_announced = self._frozen = False
        held_back, self._held_back = self._held_back, []
        for action, arguments in held_back:
            self._clock.after(0.0, action, *arguments)
        self._clock.after(0.0, self._begin)

    def _put_off(self, action: Callable[..., None], *arguments: object) -> None:
        self._held_back.append((action, arguments))

    # ---- passes

    def receive(self, step: Step) -> None:
        """A step has arrived."""
        session = step.session
        if self.left is not None or step.epoch != session.epoch:
            return
        if self.unreachable:
            self._put_off(self.receive, step)
            return
        now = self._clock.now
        step.waits_since = now
        self._queue.push(
            Entry(step, step.service_class, session.client, session.id, step.tokens), now
        )
        if not self._busy:
            self._begin()

    def _begin(self) -> None:
        if self._busy or self._frozen or self.left is not None or not len(self._queue):
            return
        now = self._clock.now
        if self.cores.shared and self._gathers(now):
            return
        plan = self._planner.plan(now, self._groups.most_steps(now))
        waited_s = 0.0
        for share in plan.shares:
            step = share.entry.item
            step.done += share.tokens
            waited_s += now - step.waits_since
        waited_s /= len(plan.shares)
        self._queue_wait_s += _QUEUE_WEIGHT * (waited_s - self._queue_wait_s)
        self._busy = True
        work_s = self._work_s(plan.shares) * self.slowed
        if self.at_next_pass is not None:
            self._clock.after(work_s / 2, self.at_next_pass)
            self.at_next_pass = None
        self.cores.start(work_s, partial(self._passed, plan.shares, plan.size, now, work_s))

    def _gathers(self, now: float) -> bool:
        """Whether to wait for more decode rows; then it is asked again."""
        if any(self._queue.cost(each) for each in ServiceClass if each > ServiceClass.DECODE):
            return False
        waited_s = now - self._queue.since(ServiceClass.DECODE)
        until = now + self._groups.wait_s(len(self._queue), waited_s, now)
        if until <= now:  # also of a rest that is too small for the clock to tell
            return False
        if until != self._asked_again_at:
            self._asked_again_at = until
            self._clock.at(until, self._begin)
        return True

    def _work_s(self, shares: Shares) -> float:
        """Processor time; steps over different parts of the span are computed one part after the
        other."""
        if len(shares) == 1:
            return self._part_s(_hop_of(shares[0]), shares)
        parts: dict[Hop, list[Share[Step]]] = {}
        for share in shares:
            parts.setdefault(_hop_of(share), []).append(share)
        return sum(self._part_s(hop, same) for hop, same in parts.items())

    def _part_s(self, hop: Hop, shares: Shares) -> float:
        """Of a pass over the blocks of `hop`. Where there are decode rows, the weights are read for
        them, and a prompt's tokens cost no more than themselves."""
        speed = self._speed
        blocks, rows, context, prompt = hop.end - hop.start, 0, 0, 0
        for share in shares:
            step = share.entry.item
            if step.service_class is ServiceClass.DECODE:
                rows += 1
                context += step.context
            else:
                prompt += share.tokens
        if not rows:
            return speed.prefill_s(blocks, prompt)
        self.decode_blocks += rows * blocks
        return speed.decode_s(blocks, rows, context) + blocks * prompt * speed.prefill_token_s

    def _passed(self, shares: Shares, size: PassSize, began: float, work_s: float) -> None:
        if self.left is not None:
            return
        if self._frozen:
            self._put_off(self._passed, shares, size, began, work_s)
            return
        now = self._clock.now
        self._busy = False
        self.passes += 1
        self.busy_s += now - began
        decoding = [
            share.entry.session
            for share in shares
            if share.entry.service_class is ServiceClass.DECODE
        ]
        self._groups.pass_ended(decoding, now - began, work_s, now)
        self._learn(shares, size, now - began)
        for share in shares:
            if share.last:
                self._emit(share.entry.item)
            else:
                share.entry.item.waits_since = now
        self._begin()

    def _learn(self, shares: Shares, size: PassSize, wall_s: float) -> None:
        """As the engine does."""
        hop = _hop_of(shares[0])
        if len(shares) > 1 and any(_hop_of(share) != hop for share in shares):
            return
        whole_s = wall_s * len(self.span) / (hop.end - hop.start)
        if abs(self._costs.seconds(size) - whole_s) > _NOTHING_NEW * whole_s:
            self._costs.learn(size, whole_s)

    def _emit(self, step: Step) -> None:
        if self.unreachable:
            self._put_off(self._emit, step)
        elif self.wrong:
            step.session.spoilt(step)
        else:
            step.session.computed(step)


def _first_guess(speed: ServerSpeed, blocks: int) -> CostModel:
    """What a server measures when it has loaded its blocks."""
    decode_s = max(_MIN_S, speed.decode_s(blocks, 1, PROMPT_TOKENS))
    prompt_s = max(_MIN_S, speed.prefill_s(blocks, PROMPT_TOKENS))
    return CostModel(decode_s, PROMPT_TOKENS / prompt_s)


def _hop_of(share: Share[Step]) -> Hop:
    step = share.entry.item
    return step.stages[step.at].hop
