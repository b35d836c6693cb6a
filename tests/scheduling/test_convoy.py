"""Engines in a ring, with the real queues and planners, on a virtual clock: no convoy stays."""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import pytest

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.convoy import ConvoyControl
from swarm.scheduling.cost_model import CostModel, PassSize
from swarm.scheduling.decode_groups import DecodeGroups
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


NAMES = [b"%d" % number for number in range(16)]


def pass_s(rows: int) -> float:
    return 0.005 + 0.004 * rows


def come_round(
    control: ConvoyControl, now: float, rounds: int, round_s: Callable[[int], float]
) -> float:
    """All sessions come round so often, in groups as large as the control says; the time then.

    `round_s(rows)`: from one pass of a session to its next one."""
    for _ in range(rounds):
        rows = control.most_rows(now) or len(NAMES)
        groups = [NAMES[first : first + rows] for first in range(0, len(NAMES), rows)]
        for number, group in enumerate(groups):
            control.pass_ended(group, pass_s(len(group)), now + number * pass_s(rows))
        now += max(round_s(rows), len(groups) * pass_s(rows))
    return now


def test_the_control_lets_go_when_no_server_is_idle() -> None:
    control = ConvoyControl(pass_s)
    now = come_round(control, 0.0, 100, lambda rows: 4 * pass_s(rows))  # a ring of four
    assert control.groups > 1
    assert control.most_rows(now) == -(-16 // control.groups)
    now = come_round(control, now, 100, lambda _: 0.0)
    assert control.groups == 1
    assert control.most_rows(now) is None


def test_a_cut_that_brings_nothing_is_taken_back_and_not_tried_again_soon() -> None:
    control = ConvoyControl(pass_s)
    cut, now = 0, 0.0
    for _ in range(200):
        now = come_round(control, now, 1, lambda _: 0.28)  # the cores are the same
        cut += control.groups > 1
    assert now > 50
    assert 0 < cut <= 20


def test_on_cores_that_others_want_nothing_is_cut_for_a_while() -> None:
    groups = DecodeGroups(pass_s)
    cut = []
    now = 0.0
    for turn in range(400):
        crowding = 2.0 if turn < 40 else 1.0
        rows = groups.most_steps(now) or len(NAMES)
        for first in range(0, len(NAMES), rows):
            group = NAMES[first : first + rows]
            groups.pass_ended(group, pass_s(len(group)), pass_s(len(group)) / crowding, now)
        cut += [now] if rows < len(NAMES) else []
        now += 4 * pass_s(rows)
    assert cut
    assert cut[0] > 40 * 4 * pass_s(16) + 25


def test_passes_that_are_no_shorter_are_not_cut() -> None:
    control = ConvoyControl(lambda rows: 0.02 + 0.0001 * rows)
    for turn in range(100):
        control.pass_ended([b"%d" % number for number in range(8)], 0.02, 0.2 * turn)
        assert control.most_rows(0.2 * turn) is None


def test_sessions_that_ended_or_fell_silent_do_not_count() -> None:
    control = ConvoyControl(pass_s)
    now = come_round(control, 0.0, 100, lambda rows: 4 * pass_s(rows))
    assert control.groups > 1
    for name in NAMES[1:]:
        control.session_ended(name)
    assert control.most_rows(now) in (None, 1)
    assert control.most_rows(now + 5) is None
