"""Virtual time, and cores that passes share."""

from dataclasses import replace

import pytest
from scenarios import chain, traffic

from swarm.scheduling.gathering import Gathering
from swarm.simulator.clock import Clock
from swarm.simulator.directory import SimulatedDirectory
from swarm.simulator.host import SharedCores
from swarm.simulator.requests import Outcome
from swarm.simulator.scenario import HostCores
from swarm.simulator.simulation import simulate
from swarm.spans import PeerId


def test_events_run_in_the_order_of_their_times_and_of_their_making():
    clock, seen = Clock(), []
    for name, time in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        clock.at(time, seen.append, name)
    clock.at(1.5, lambda: clock.at(0.0, seen.append, "late"))
    clock.run(lambda: False)
    assert seen == ["a", "b", "late", "c"]
    assert (clock.now, clock.events) == (2.0, 5)


def test_it_stops_when_it_is_told():
    clock, seen = Clock(), []
    for time in range(5):
        clock.at(float(time), seen.append, time)
    clock.run(lambda: len(seen) == 2)
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("cores", "starts", "ends"),
    [
        (1.0, [(0.0, 1.0)], [1.0]),
        (1.0, [(0.0, 1.0), (0.0, 1.0)], [2.0, 2.0]),
        # Alone until 0.5, then half the speed each: 1.5; then alone again.
        (1.0, [(0.0, 1.0), (0.5, 1.0)], [1.5, 2.0]),
        (2.0, [(0.0, 1.0), (0.5, 1.0)], [1.0, 1.5]),
        (2.0, [(0.0, 1.0)] * 3, [1.5] * 3),
        (0.5, [(0.0, 1.0)], [2.0]),
        (1.0, [(0.0, 0.0), (0.0, 1.0)], [0.0, 1.0]),
    ],
)
def test_passes_share_the_cores_of_their_host(cores, starts, ends):
    clock = Clock()
    host = SharedCores(clock, cores)
    ended = {}
    for number, (start, work_s) in enumerate(starts):

        def done(number=number):
            ended[number] = clock.now

        clock.at(start, host.start, work_s, done)
    clock.run(lambda: False)
    assert [ended[number] for number in range(len(starts))] == pytest.approx(ends)


def test_a_wait_that_is_too_small_for_the_clock_is_over(monkeypatch):
    """What is left of a wait is a difference of floats; the clock stands still for so little."""
    announced, announce_really = [], SimulatedDirectory.announce

    def announce(directory, view):
        announced.append(view)
        assert len(announced) < 1000, "nothing goes on any more"
        announce_really(directory, view)

    monkeypatch.setattr(SimulatedDirectory, "announce", announce)
    monkeypatch.setattr(Gathering, "wait_s", lambda *waits: 1e-18)
    halves = {"server-a": (0, 4), "server-b": (4, 8)}
    scenario = chain(halves, clients=2, traffic=traffic(4, at_once=True))
    host = HostCores(1.0, tuple(map(PeerId, halves)))
    result = simulate(replace(scenario, hosts=(host,)), "round-robin")
    assert all(request.outcome is Outcome.DONE for request in result.requests)
