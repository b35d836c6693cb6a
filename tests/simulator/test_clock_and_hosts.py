"""Virtual time, and cores that passes share."""

import pytest

from swarm.simulator.clock import Clock
from swarm.simulator.host import SharedCores


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
