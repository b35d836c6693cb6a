"""When a step is late."""

from swarm.sessions.step_times import FEWEST, FIRST_S, LEAST_S, MOST_S, StepTimes


def times(*seconds: float) -> StepTimes:
    made = StepTimes()
    for one in seconds:
        made.add(one)
    return made


def test_until_enough_is_known_there_is_patience() -> None:
    assert times(*[0.1] * (FEWEST - 1)).deadline_s == FIRST_S


def test_it_follows_what_is_usual() -> None:
    assert times(*[0.5] * 20).deadline_s == 2.0
    assert times(*[0.001] * 20).deadline_s == LEAST_S
    assert times(*[60.0] * 20).deadline_s == MOST_S


def test_one_slow_step_changes_nothing() -> None:
    assert times(*[0.5] * 30, 9.0).deadline_s == 2.0


def test_a_call_in_vain_makes_the_next_one_later() -> None:
    late = times(*[0.5] * 20)
    late.was_late()
    assert late.deadline_s == 4.0
    for _ in range(70):
        late.add(0.5)
    assert 2.0 <= late.deadline_s < 2.1
