"""Engines in a ring, with the real queues and planners, on a virtual clock: no convoy stays."""

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import pytest

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.convoy import ConvoyControl
from swarm.scheduling.cost_model import CostModel, PassSize
from swarm.scheduling.fair_queue import Entry, FairQueue
from swarm.scheduling.pass_planner import PassPlanner

GAP_S = 0.0003
"""Messages of a pass leave one after the other."""


@dataclass(eq=False)
class Step:
    session: int
    left: int = 1
    held: float = 200.0


class Costs(CostModel):
    def __init__(self, fixed_s: float, per_token_s: float) -> None:
        super().__init__(fixed_s, 1 / per_token_s)
        self.fixed_s, self.per_token_s, self.per_context_s = fixed_s, per_token_s, 0.0


class Ring:
    """Each session's step passes all stages, and begins anew at the first."""

    def __init__(
        self, stages: int, sessions: int, costs: Costs, wire_s: float, controlled: bool
    ) -> None:
        self.costs = costs
        self.wire_s = wire_s
        self.queues: list[FairQueue[Step]] = [FairQueue() for _ in range(stages)]
        self.planners = [PassPlanner(queue, costs, max_tokens=512) for queue in self.queues]
        self.controls = [
            ConvoyControl(lambda rows: costs.seconds(PassSize(rows))) for _ in range(stages)
        ]
        self.controlled = controlled
        self.computing = [False] * stages
        self.events: list[tuple[float, int, int, Any]] = []
        self.order = self.tokens = 0
        self.now = 0.0
        for session in range(sessions):  # nearly at once: a convoy
            self.at(session * GAP_S / 10, 0, Step(session))

    def at(self, when: float, stage: int, what: Any) -> None:
        self.order += 1
        heappush(self.events, (when, self.order, stage, what))

    def begin(self, stage: int) -> None:
        if self.computing[stage] or not len(self.queues[stage]):
            return
        most = self.controls[stage].most_rows(self.now) if self.controlled else None
        plan = self.planners[stage].plan(self.now, most)
        seconds = self.costs.seconds(plan.size)
        self.computing[stage] = True
        self.at(self.now + seconds, stage, (plan.shares, seconds))

    def run(self, seconds: float) -> float:
        """Tokens a second."""
        end, before = self.now + seconds, self.tokens
        while self.events[0][0] <= end:
            self.now, _, stage, what = heappop(self.events)
            if isinstance(what, Step):
                name = b"%d" % what.session
                entry = Entry(what, ServiceClass.DECODE, str(what.session), name, 1)
                self.queues[stage].push(entry, self.now)
            else:
                self.ended(stage, *what)
            self.begin(stage)
        self.now = end
        return (self.tokens - before) / seconds

    def ended(self, stage: int, shares: Any, seconds: float) -> None:
        self.computing[stage] = False
        sessions = [share.entry.item.session for share in shares]
        names = [b"%d" % session for session in sessions]
        self.controls[stage].pass_ended(names, seconds, self.now)
        following = (stage + 1) % len(self.queues)
        self.tokens += len(sessions) if following == 0 else 0
        for number, session in enumerate(sessions):
            self.at(self.now + self.wire_s + number * GAP_S, following, Step(session))


def both(stages: int, sessions: int, fixed_s: float, row_s: float, wire_s: float) -> list[float]:
    """Tokens a second, without and with the control."""
    rates = []
    for controlled in (False, True):
        ring = Ring(stages, sessions, Costs(fixed_s, row_s), wire_s, controlled)
        ring.run(8.0)
        rates.append(ring.run(10.0))
    return rates


@pytest.mark.parametrize(
    ("stages", "sessions", "fixed_s", "row_s", "wire_s", "gain"),
    [
        (4, 32, 0.01, 0.001, 0.015, 1.0),
        (3, 16, 0.005, 0.004, 0.025, 1.5),
        (3, 16, 0.01, 0.001, 0.025, 1.1),
        (3, 16, 0.01, 0.001, 0.005, 0.97),
        (3, 16, 0.01, 0.0002, 0.005, 0.97),
        (2, 8, 0.02, 0.0005, 0.002, 0.97),
        (3, 4, 0.02, 0.0002, 0.01, 0.97),
        (1, 16, 0.01, 0.001, 0.05, 0.97),
    ],
)
def test_a_ring_of_servers_is_better_off_by_so_much(
    stages: int, sessions: int, fixed_s: float, row_s: float, wire_s: float, gain: float
) -> None:
    plain, controlled = both(stages, sessions, fixed_s, row_s, wire_s)
    assert controlled >= gain * plain


def test_the_control_lets_go_when_no_server_is_idle() -> None:
    control = ConvoyControl(lambda rows: 0.005 + 0.004 * rows)
    names = [b"%d" % number for number in range(16)]
    now = 0.0
    for _ in range(100):  # the rest of the ring takes four times as long
        control.pass_ended(names, 0.07, now)
        control.most_rows(now)
        now += 0.28
    assert control.groups > 1
    assert control.most_rows(now) == -(-16 // control.groups)
    for _ in range(100):
        control.pass_ended(names, 0.07, now)
        control.most_rows(now)
        now += 0.071
    assert control.groups == 1
    assert control.most_rows(now) is None


def test_passes_that_are_no_shorter_are_not_cut() -> None:
    control = ConvoyControl(lambda rows: 0.02 + 0.0001 * rows)
    for turn in range(100):
        control.pass_ended([b"%d" % number for number in range(8)], 0.02, 0.2 * turn)
        assert control.most_rows(0.2 * turn) is None


def test_sessions_that_ended_or_fell_silent_do_not_count() -> None:
    control = ConvoyControl(lambda rows: 0.005 + 0.004 * rows)
    names = [b"%d" % number for number in range(16)]
    for turn in range(100):
        control.pass_ended(names, 0.07, 0.28 * turn)
        control.most_rows(0.28 * turn)
    assert control.groups > 1
    for name in names[1:]:
        control.session_ended(name)
    assert control.most_rows(0.28 * 100) in (None, 1)
    assert control.most_rows(0.28 * 100 + 5) is None
