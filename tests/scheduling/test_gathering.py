from hypothesis import given
from hypothesis import strategies as st

from swarm.scheduling.gathering import CROWDED, MEMORY_S, PATIENCE_PASSES, Gathering

EIGHT = [bytes([index]) for index in range(8)]


def _after(wall_s: float, processor_s: float, passes: int = 50, now: float = 0.0) -> Gathering:
    gathering = Gathering()
    for _ in range(passes):
        gathering.pass_ended(EIGHT, wall_s, processor_s, now)
    return gathering


def test_a_server_with_its_own_cores_never_waits() -> None:
    assert _after(0.020, 0.020).wait_s(1, 0.0, 0.0) == 0.0


def test_on_shared_cores_a_pass_waits_for_half_of_the_sessions_and_no_longer_than_two() -> None:
    gathering = _after(0.040, 0.020)
    assert abs(gathering.wait_s(1, 0.0, 0.0) - 0.080) < 1e-9
    assert abs(gathering.wait_s(3, 0.015, 0.0) - 0.065) < 1e-9
    assert gathering.wait_s(3, 0.090, 0.0) == 0.0
    assert gathering.wait_s(4, 0.0, 0.0) == 0.0


def test_a_little_less_crowding_does_not_part_a_group_and_free_cores_do() -> None:
    gathering = _after(0.040, 0.020)
    for _ in range(50):
        gathering.pass_ended(EIGHT, 0.020 * 1.1, 0.020, 0.0)
    assert gathering.wait_s(1, 0.0, 0.0) > 0.0
    for _ in range(50):
        gathering.pass_ended(EIGHT, 0.020, 0.020, 0.0)
    assert gathering.wait_s(1, 0.0, 0.0) == 0.0
    for _ in range(50):
        gathering.pass_ended(EIGHT, 0.020 * 1.1, 0.020, 0.0)
    assert gathering.wait_s(1, 0.0, 0.0) == 0.0


def test_a_single_session_is_never_held_up() -> None:
    gathering = Gathering()
    for _ in range(50):
        gathering.pass_ended(EIGHT[:1], 0.5, 0.02, 0.0)
    assert gathering.wait_s(1, 0.0, 0.0) == 0.0


def test_sessions_that_ended_or_fell_silent_are_not_waited_for() -> None:
    gathering = _after(0.040, 0.020)
    for session in EIGHT[2:]:
        gathering.session_ended(session)
    assert gathering.wait_s(1, 0.0, 0.0) == 0.0
    silent = _after(0.040, 0.020)
    assert silent.wait_s(1, 0.0, MEMORY_S * 1.01) == 0.0
    assert silent.expected(MEMORY_S * 1.01) == 0


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.floats(0, 1), st.integers(0, 8), st.floats(0, 0.5)),
        max_size=40,
    ),
    st.integers(1, 8),
    st.floats(0, 2),
)
def test_the_wait_is_bounded_by_the_longest_passes(
    passes: list[tuple[float, float, int, float]], ready: int, waited_s: float
) -> None:
    gathering, now = Gathering(), 0.0
    for extra_s, processor_s, sessions, pause_s in passes:
        now += pause_s
        gathering.pass_ended(EIGHT[:sessions], processor_s + extra_s, processor_s, now)
    longest = max((extra_s + processor_s for extra_s, processor_s, _, _ in passes), default=0.0)
    wait_s = gathering.wait_s(ready, waited_s, now)
    assert 0.0 <= wait_s <= max(0.0, PATIENCE_PASSES * longest - waited_s) + 1e-9
    assert CROWDED > 1.0
