"""How long a pass may be beside decode: three stages, real queues and planners, a virtual clock."""

import random
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import pytest

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.cost_model import CostModel
from swarm.scheduling.fair_queue import Entry, FairQueue
from swarm.scheduling.pass_planner import PassPlanner
from swarm.scheduling.prefill_chunks import chunk_tokens

DECODE, PREFILL = ServiceClass.DECODE, ServiceClass.PREFILL
STAGES, DECODERS, SECONDS = 3, 8, 24.0
WIRE_S, CLIENT_S = 0.01, 0.003
USE, WINDOW = 0.5, 8
"""Of a stage's time, for prompts; and chunks of a prompt on their way."""


class Costs(CostModel):
    """What passes take, known from the beginning."""

    def __init__(self, fixed_s: float, per_token_s: float) -> None:
        super().__init__(fixed_s, 1 / per_token_s)
        self.fixed_s, self.per_token_s, self.per_context_s = fixed_s, per_token_s, 0.0


@dataclass(eq=False)
class Step:
    session: int
    tokens: int
    service_class: ServiceClass
    last: bool = False
    """Of its prompt."""
    left: int = 0
    held: float = 200.0


@dataclass
class Prompt:
    came_at: float
    tokens: int
    sent: int = 0
    on_way: int = 0


class Chain:
    """Sessions that decode, and prompts at random times that stream through the stages."""

    def __init__(self, costs: Costs, seed: int, **budgets: float) -> None:
        self.costs = costs
        self.queues: list[FairQueue[Step]] = [FairQueue() for _ in range(STAGES)]
        self.planners = [
            PassPlanner(queue, costs, max_tokens=512, **budgets) for queue in self.queues
        ]
        self.computing = [False] * STAGES
        self.events: list[tuple[float, int, int, Any]] = []
        self.order = 0
        self.now = 0.0
        self.prompts: dict[int, Prompt] = {}
        self.tokens_at: dict[int, float] = {}
        self.gaps: list[float] = []
        self.first_token_s: list[float] = []
        draw = random.Random(seed)
        for session in range(DECODERS):
            self.at(draw.uniform(0, 0.1), 0, Step(session, 1, DECODE))
        count = round(SECONDS * USE / costs.per_token_s / 1280)
        lengths = [512 + int(1536 / count * (part + draw.random())) for part in range(count)]
        draw.shuffle(lengths)
        for number, tokens in enumerate(lengths):
            came_at = draw.uniform(0, SECONDS)
            self.prompts[100 + number] = Prompt(came_at, tokens)
            self.at(came_at, 0, 100 + number)

    def at(self, when: float, stage: int, what: Any) -> None:
        self.order += 1
        heappush(self.events, (when, self.order, stage, what))

    def run(self) -> tuple[float, float]:
        """The 99th percentile between two tokens, and the mean time to a prompt's first."""
        while self.events:
            self.now, _, stage, what = heappop(self.events)
            if isinstance(what, int):
                self.send(what)
            elif isinstance(what, Step):
                self.arrive(stage, what)
            else:
                self.computing[stage] = False
                for step in what:
                    self.at(self.now + WIRE_S, stage + 1, step)
            if stage < STAGES:
                self.begin(stage)
        self.gaps.sort()
        return self.gaps[len(self.gaps) * 99 // 100], sum(self.first_token_s) / len(self.prompts)

    def send(self, session: int) -> None:
        prompt = self.prompts[session]
        pieces = -(-prompt.tokens // chunk_tokens(prompt.tokens, STAGES))
        while prompt.sent < prompt.tokens and prompt.on_way < WINDOW:
            tokens = min(-(-prompt.tokens // pieces), prompt.tokens - prompt.sent)
            prompt.sent += tokens
            prompt.on_way += 1
            step = Step(session, tokens, PREFILL, prompt.sent == prompt.tokens)
            self.at(self.now + WIRE_S, 0, step)

    def arrive(self, stage: int, step: Step) -> None:
        if stage < STAGES:
            step.left = step.tokens
            name = b"%d" % step.session
            entry = Entry(step, step.service_class, str(step.session), name, step.left)
            self.queues[stage].push(entry, self.now)
        elif step.service_class is PREFILL:
            prompt = self.prompts[step.session]
            prompt.on_way -= 1
            self.send(step.session)
            if step.last:
                self.first_token_s.append(self.now - prompt.came_at)
        elif self.now < SECONDS:
            if step.session in self.tokens_at:
                self.gaps.append(self.now - self.tokens_at[step.session])
            self.tokens_at[step.session] = self.now
            self.at(self.now + WIRE_S + CLIENT_S, 0, Step(step.session, 1, DECODE))

    def begin(self, stage: int) -> None:
        if self.computing[stage] or not len(self.queues[stage]):
            return
        plan = self.planners[stage].plan(self.now)
        for share in plan.shares:
            share.entry.item.left -= share.tokens
        done = [share.entry.item for share in plan.shares if share.last]
        self.computing[stage] = True
        self.at(self.now + self.costs.seconds(plan.size), stage, done)


def figures(costs: Costs, **budgets: float) -> tuple[float, float]:
    """Means of two seeds."""
    found = [Chain(costs, seed, **budgets).run() for seed in (1, 2)]
    return sum(p99 for p99, _ in found) / 2, sum(ttft for _, ttft in found) / 2


def test_shorter_passes_spare_decode_a_third_and_cost_prompts_nothing() -> None:
    fast = Costs(0.005, 0.0002)
    p99, ttft = figures(fast)
    long_p99, long_ttft = figures(fast, pass_budget_s=0.1)
    assert p99 <= 0.75 * long_p99
    assert ttft <= 1.03 * long_ttft


def test_where_decode_is_slow_passes_stay_long_for_prompts_would_stand_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Costs(0.03, 0.0002)
    p99, ttft = figures(slow)
    monkeypatch.setattr("swarm.scheduling.pass_planner.SLOW_DECODE", 0.0)
    short_p99, short_ttft = figures(slow)
    assert ttft <= 0.5 * short_ttft
    assert p99 <= 2 * short_p99
