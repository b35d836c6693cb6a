"""How much one peer may make us store."""

from hypothesis import given
from hypothesis import strategies as st

from swarm.dht.source_limits import MAX_SOURCES, SourceLimits

attempts = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 200)), max_size=60)


@given(attempts)
def test_a_source_never_gets_more_than_its_rate_and_burst(attempts: list) -> None:
    limits = SourceLimits(bytes_per_s=10, burst_bytes=100)
    now = taken = 0.0
    for pause, size in attempts:
        now += pause
        if limits.allow("greedy", size, now):
            taken += size
        assert taken <= 100 + 10 * now + 1e-6


def test_sources_do_not_share_and_are_served_again_later() -> None:
    limits = SourceLimits(bytes_per_s=10, burst_bytes=100)
    assert limits.allow("a", 100, 0.0)
    assert not limits.allow("a", 1, 0.0)
    assert limits.allow("b", 100, 0.0)
    assert limits.allow("a", 50, 5.0)


def test_the_sources_that_were_heard_last_are_remembered() -> None:
    limits = SourceLimits(bytes_per_s=0, burst_bytes=1)
    for number in range(MAX_SOURCES + 1):
        assert limits.allow(str(number), 1, 0.0)
    assert not limits.allow(str(MAX_SOURCES), 1, 0.0)
    assert limits.allow("0", 1, 0.0)  # forgotten
