"""When a step is late."""

from swarm.sessions.step_times import (
    FEWEST,
    FIRST_S,
    MAX_CHUNK_S,
    MAX_S,
    MIN_S,
    StepTimes,
    silence_s,
)


def times(*seconds: float) -> StepTimes:
    made = StepTimes()
    for one in seconds:
        made.add(one)
    return made


def test_until_enough_is_known_there_is_patience() -> None:
    assert times(*[0.1] * (FEWEST - 1)).deadline_s == FIRST_S


def test_until_then_a_route_that_is_predicted_to_be_slow_has_more() -> None:
    made = times()
    deadlines = []
    for predicted_s in (0.0, 0.2, 3.0, 1e9):
        made.over(predicted_s)
        deadlines.append(made.deadline_s)
    assert deadlines == [FIRST_S, FIRST_S, 12.0, MAX_S]
    made.was_late()
    assert made.deadline_s == MAX_S
    for _ in range(70):
        made.add(0.1)
    assert made.deadline_s == MIN_S, "what was predicted does not count beside what was measured"


def test_slower_hops_have_their_first_steps_too() -> None:
    made = times(*[0.1] * 20)
    made.over(2.0)
    assert made.deadline_s == 8.0
    for _ in range(FEWEST):
        made.add(0.1)
    assert made.deadline_s == MIN_S
    made.over(0.0)
    assert made.deadline_s == MIN_S, "as long as was usual before, where nothing is known"


def test_silence_may_last_longer_where_prompts_are_slow_but_not_for_ever() -> None:
    assert silence_s(60.0, 0.0) == 60.0
    assert silence_s(60.0, 5.0) == 80.0
    assert silence_s(60.0, 1e9) == 60.0 + MAX_CHUNK_S


def test_it_follows_what_is_usual() -> None:
    assert times(*[0.5] * 20).deadline_s == 2.0
    assert times(*[0.001] * 20).deadline_s == MIN_S
    assert times(*[60.0] * 20).deadline_s == MAX_S


def test_one_slow_step_changes_nothing() -> None:
    assert times(*[0.5] * 30, 9.0).deadline_s == 2.0


def test_a_call_in_vain_makes_the_next_one_later() -> None:
    late = times(*[0.5] * 20)
    late.was_late()
    assert late.deadline_s == 4.0
    for _ in range(70):
        late.add(0.5)
    assert 2.0 <= late.deadline_s < 2.1
