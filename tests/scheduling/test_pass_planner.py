"""What joins a pass, on an engine whose passes take what the cost model says."""

from collections import defaultdict
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.cost_model import CostModel, PassSize, tokens_after
from swarm.scheduling.fair_queue import Entry, FairQueue, Policy
from swarm.scheduling.pass_planner import MIN_CHUNK_TOKENS, PassPlanner, Share

DECODE, PREFILL = ServiceClass.DECODE, ServiceClass.PREFILL


@dataclass(eq=False)
class Step:
    session: int
    left: int
    held: float
    service_class: ServiceClass
    client: str = ""

    def entry(self) -> "Entry[Step]":
        name = b"%d" % self.session
        client = self.client or f"client-{self.session}"
        return Entry(self, self.service_class, client, name, self.left)


class Engine:
    """Runs plans on a virtual clock."""

    def __init__(
        self, *, policy: Policy | None = None, decode_s: float = 0.005, max_tokens: int = 512
    ) -> None:
        self.queue: FairQueue[Step] = FairQueue(policy or Policy())
        self.costs = CostModel(decode_s, 1000.0)
        self.planner = PassPlanner(
            self.queue, self.costs, max_tokens=max_tokens, pass_budget_s=0.05
        )
        self.now = 100.0
        self.served_s: dict[ServiceClass, float] = defaultdict(float)
        self.longest_wait_s: dict[ServiceClass, float] = defaultdict(float)
        self._last: dict[ServiceClass, float] = {}

    def push(self, step: Step) -> None:
        self._last.setdefault(step.service_class, self.now)
        self.queue.push(step.entry(), self.now)

    def run(self) -> tuple[float, tuple[Share[Step], ...]]:
        """One pass: its seconds, and what was in it."""
        plan = self.planner.plan(self.now)
        for share in plan.shares:
            step = share.entry.item
            each = step.service_class
            self.served_s[each] += self.costs.marginal_s(tokens_after(step.held, share.tokens))
            self.longest_wait_s[each] = max(self.longest_wait_s[each], self.now - self._last[each])
            step.left -= share.tokens
            step.held += share.tokens
        if any(share.entry.item.service_class == DECODE for share in plan.shares):
            self.served_s[DECODE] += self.costs.fixed_s
        seconds = self.costs.seconds(plan.size)
        self.now += seconds
        for share in plan.shares:
            self._last[share.entry.item.service_class] = self.now
        return seconds, plan.shares


def test_a_pass_beside_decode_keeps_its_budget() -> None:
    engine = Engine()
    engine.push(Step(0, 4000, 0, PREFILL))
    while len(engine.queue):
        engine.push(Step(1, 1, 500, DECODE))
        seconds, shares = engine.run()
        assert shares[0].entry.item.service_class == DECODE
        assert seconds <= 0.05 * 1.01
        if engine.queue.cost(PREFILL):
            assert seconds > 0.04, "the budget is used"


@pytest.mark.parametrize(
    ("decode_s", "least_s", "most_s"), [(0.01, 0.04, 0.05), (0.02, 0.075, 0.08), (0.04, 0.09, 0.1)]
)
def test_where_decode_is_slow_a_pass_may_take_longer(
    decode_s: float, least_s: float, most_s: float
) -> None:
    """Four times what the decode rows take alone, but twice the budget at most."""
    engine = Engine(decode_s=decode_s)
    engine.push(Step(0, 4000, 0, PREFILL))
    for _ in range(5):
        engine.push(Step(1, 1, 127, DECODE))
        seconds, _ = engine.run()
        assert least_s < seconds <= most_s * 1.01


def test_without_decode_a_pass_is_as_large_as_it_may_be() -> None:
    engine = Engine()
    engine.push(Step(0, 1000, 0, PREFILL))
    seconds, (share,) = engine.run()
    assert 0.45 < seconds <= 0.5
    assert not share.last
    assert engine.queue.cost(PREFILL) == 1000


def test_all_decode_goes_before_any_prompt() -> None:
    engine = Engine()
    engine.push(Step(0, 100, 0, PREFILL))
    for session in range(1, 9):
        engine.push(Step(session, 1, 100, DECODE))
    _, shares = engine.run()
    assert [share.entry.item.service_class for share in shares[:8]] == [DECODE] * 8
    assert len(shares) == 9


def test_a_session_has_one_step_in_a_pass() -> None:
    engine = Engine()
    for _ in range(3):
        engine.push(Step(0, 20, 0, PREFILL))
    engine.push(Step(1, 20, 0, PREFILL))
    _, shares = engine.run()
    assert sorted(share.entry.item.session for share in shares) == [0, 1]


def saturate(engine: Engine, rows: int, passes: int, chunk: int = 100_000) -> None:
    """Decode alone fills the engine for more than its budget, and one prompt waits."""
    engine.push(Step(0, chunk, 0, PREFILL))
    prompt_left = chunk
    for _ in range(passes):
        for session in range(1, rows + 1):
            engine.push(Step(session, 1, 1000, DECODE))
        _, shares = engine.run()
        prompt_left -= sum(s.tokens for s in shares if s.entry.item.service_class == PREFILL)
        if prompt_left == 0:
            engine.push(Step(0, chunk, 0, PREFILL))
            prompt_left = chunk


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_prompts_get_their_share_when_decode_fills_the_engine(share: float) -> None:
    policy = Policy(shares={PREFILL: share}, longest_wait_s=None)
    engine = Engine(policy=policy, decode_s=0.1)
    saturate(engine, 8, 400)
    total = sum(engine.served_s.values())
    assert engine.served_s[PREFILL] / total == pytest.approx(share, abs=0.02)


def test_prompts_move_within_the_bound_when_decode_fills_the_engine() -> None:
    engine = Engine(policy=Policy(shares={}, longest_wait_s=1.0), decode_s=0.1)
    saturate(engine, 8, 200)
    pass_s = engine.costs.seconds(PassSize(8, 8000.0) + tokens_after(256, MIN_CHUNK_TOKENS))
    assert 0 < engine.longest_wait_s[PREFILL] <= 1.0 + pass_s
    assert engine.served_s[PREFILL] > 0


def test_without_share_and_bound_they_starve() -> None:
    engine = Engine(policy=Policy(shares={}, longest_wait_s=None), decode_s=0.1)
    saturate(engine, 8, 200)
    assert engine.served_s[PREFILL] == 0


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.booleans(), st.integers(1, 700), st.integers(0, 3000)),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([8, 64, 512]),
)
def test_everything_is_served_once_and_within_the_limits(
    steps: list[tuple[int, bool, int, int]], max_tokens: int
) -> None:
    engine = Engine(max_tokens=max_tokens)
    waiting: dict[int, list[Step]] = defaultdict(list)
    for session, decode, tokens, held in steps:
        step = Step(session, min(tokens, 16) if decode else tokens, held, (PREFILL, DECODE)[decode])
        waiting[session].append(step)
        engine.push(step)
    for _ in range(10_000):
        if not len(engine.queue):
            break
        _, shares = engine.run()
        assert shares, "a free engine with work begins a pass"
        for kind in (DECODE, PREFILL):
            parts = [s.tokens for s in shares if s.entry.item.service_class == kind]
            assert sum(parts) <= max_tokens or len(parts) == 1
        for share in shares:
            step = share.entry.item
            assert waiting[step.session][0] is step
            assert share.last == (step.left == 0)
            if share.last:
                waiting[step.session].pop(0)
    assert not len(engine.queue)
    assert not any(waiting.values())
