"""What joins the next pass: decode first, then as much of the prompts as the time allows.

Asked only when the engine is free, so that nothing is decided earlier than it must be. Pure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.cost_model import CostModel, PassSize, tokens_after
from swarm.scheduling.decode_activity import DecodeActivity
from swarm.scheduling.fair_queue import Entry, FairQueue

PASS_BUDGET_S = 0.05
"""A pass takes no longer than this while somebody decodes, unless the decode rows alone do."""
SLOW_DECODE = 4.0
"""Where the decode rows of a pass alone take long, a pass may take so many times that: else what
every pass costs would be most of what a prompt costs."""
MAX_STRETCH = 2.0
"""But no more than so many times the budget."""
IDLE_PASS_BUDGET_S = 0.5
"""The same while nobody does."""
MIN_CHUNK_TOKENS = 16
"""A prompt is cut no finer, but for its end, and behind a long context: there as many as take the
time that these take at the beginning."""


class Work(Protocol):
    """A step that waits for its passes."""

    @property
    def left(self) -> int:
        """Tokens that are not computed yet."""

    @property
    def held(self) -> float:
        """Slots before the next token; of several rows the mean."""


WorkT = TypeVar("WorkT", bound=Work)


@dataclass(frozen=True, slots=True)
class Share(Generic[WorkT]):
    """The next `tokens` tokens of a step join the pass. `last`: none are left then."""

    entry: Entry[WorkT]
    tokens: int
    last: bool


@dataclass(frozen=True, slots=True)
class Plan(Generic[WorkT]):
    shares: tuple[Share[WorkT], ...]
    size: PassSize


class PassPlanner(Generic[WorkT]):
    """Chooses from a queue whose service is counted in seconds."""

    def __init__(
        self,
        queue: FairQueue[WorkT],
        costs: CostModel,
        *,
        max_tokens: int,
        pass_budget_s: float = PASS_BUDGET_S,
        idle_pass_budget_s: float = IDLE_PASS_BUDGET_S,
    ) -> None:
        """`max_tokens`: of the decode rows of a pass, but for the first, and of all else in it."""
        self._queue = queue
        self._costs = costs
        self._max_tokens = max_tokens
        self._least_tokens = min(MIN_CHUNK_TOKENS, max_tokens)
        self._least_size = tokens_after(0, self._least_tokens)
        self._pass_budget_s = pass_budget_s
        self._idle_pass_budget_s = idle_pass_budget_s
        self._decode = DecodeActivity()
        self._decode_s = 0.0
        """What the decode rows of the last pass that had some take alone."""

    def plan(self, now: float, most_steps: int | None = None) -> Plan[WorkT]:
        """Takes out of the queue what the pass completes, and charges what it computes.

        `most_steps`: of decode, if nothing else waits: a pass that prompts make long takes all.
        """
        shares: list[Share[WorkT]] = []
        self._queue.quantum = self._costs.marginal_s(self._least_size)
        if self._queue.patient_cost:
            most_steps = None
        size = self._take_decode(shares, now, most_steps)
        spent_s = self._costs.fixed_s + self._costs.marginal_s(size)
        if size.tokens:
            self._decode_s = spent_s
        if self._queue.peek(now, ServiceClass.REPAIR) is not None:
            size += self._take_others(shares, size, spent_s, now)
        self._queue.release(now)
        return Plan(tuple(shares), size)

    def _take_decode(
        self, shares: list[Share[WorkT]], now: float, most_steps: int | None
    ) -> PassSize:
        queue, size, taken = self._queue, _EMPTY, 0
        while (entry := queue.peek(now, ServiceClass.CONTROL, ServiceClass.DECODE)) is not None:
            work = entry.item
            if size.tokens and size.tokens + work.left > self._max_tokens:
                break
            if taken == most_steps:
                break
            taken += 1
            added = tokens_after(work.held, work.left)
            size = size + added if size.tokens else added
            queue.serve(entry, self._costs.marginal_s(added), now)
            shares.append(Share(entry, work.left, last=True))
            queue.hold(entry)
            queue.finish(entry, now)
        if taken:
            self._decode.seen(now)
            queue.earn(ServiceClass.DECODE, self._costs.fixed_s)
        return size

    def _take_others(
        self, shares: list[Share[WorkT]], before: PassSize, spent_s: float, now: float
    ) -> PassSize:
        queue, costs, size = self._queue, self._costs, _EMPTY
        left_s = self._allowed_s(spent_s, now)
        while (entry := queue.peek(now, ServiceClass.REPAIR)) is not None:
            work = entry.item
            room = min(costs.tokens_within(left_s, work.held), self._max_tokens - size.tokens)
            if room < work.left and (room < 1 or left_s < queue.quantum):
                if size.tokens or not self._must_move(before, entry, now):
                    break
                room = self._least_tokens
            tokens = min(room, work.left)
            added = tokens_after(work.held, tokens)
            cost_s = costs.marginal_s(added)
            left_s -= cost_s
            size += added
            queue.serve(entry, cost_s, now)
            shares.append(Share(entry, tokens, last=tokens == work.left))
            queue.hold(entry)
            if tokens == work.left:
                queue.finish(entry, now)
        return size

    def _allowed_s(self, spent_s: float, now: float) -> float:
        """How long the pass may be for work that is not decode, which takes `spent_s`."""
        budget_s = self._idle_pass_budget_s
        if self._decode.is_active(now):
            least_s = self._pass_budget_s
            budget_s = max(least_s, min(MAX_STRETCH * least_s, SLOW_DECODE * self._decode_s))
        credit_s = max(self._queue.credit(each) for each in _OTHERS)
        return max(budget_s - spent_s, credit_s)

    def _must_move(self, decode: PassSize, entry: Entry[WorkT], now: float) -> bool:
        """Whether a least chunk goes although there is no time for it."""
        return not decode.tokens or self._queue.overdue(entry.service_class, now)


_EMPTY = PassSize()
_OTHERS: Iterable[ServiceClass] = (
    ServiceClass.REPAIR,
    ServiceClass.PREFILL,
    ServiceClass.BULK,
)
