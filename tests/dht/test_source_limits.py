"""How much one peer may make us store."""

from hypothesis import given
from hypothesis import strategies as st

from swarm.dht.source_limits import MAX_SOURCES, SourceLimits, records_in
from swarm.wire.hivemind_setup import load_hivemind

attempts = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 200)), max_size=60)


@given(attempts)
def test_a_source_never_gets_more_than_its_rate_and_burst(attempts: list) -> None:
    limits = SourceLimits(bytes_per_s=10, burst_bytes=100)
    now = taken = 0.0
    for pause, size in attempts:
        now += pause
        if limits.allow("greedy", size, 1, now):
            taken += size
        assert taken <= 100 + 10 * now + 1e-6


def test_sources_do_not_share_and_are_served_again_later() -> None:
    limits = SourceLimits(bytes_per_s=10, burst_bytes=100)
    assert limits.allow("a", 100, 1, 0.0)
    assert not limits.allow("a", 1, 1, 0.0)
    assert limits.allow("b", 100, 1, 0.0)
    assert limits.allow("a", 50, 1, 5.0)


def test_the_sources_that_were_heard_last_are_remembered() -> None:
    limits = SourceLimits(bytes_per_s=0, burst_bytes=1)
    for number in range(MAX_SOURCES + 1):
        assert limits.allow(str(number), 1, 1, 0.0)
    assert not limits.allow(str(MAX_SOURCES), 1, 1, 0.0)
    assert limits.allow("0", 1, 1, 0.0)  # forgotten


def test_records_are_limited_too() -> None:
    limits = SourceLimits(records_per_s=2, burst_records=10)
    assert not limits.allow("a", 1, 11, 0.0)
    assert limits.allow("a", 1, 10, 0.0)
    assert not limits.allow("a", 1, 1, 0.0)
    assert limits.allow("a", 1, 4, 2.0)
    assert not limits.allow("a", 1, 1, 2.0)


def test_honest_servers_and_holders_are_within_the_limits() -> None:
    limits = SourceLimits()
    assert limits.allow("holder", 128 * 1024, 200, 0.0)
    for turn in range(100):
        assert limits.allow("server", 2048, 3, turn * 20.0)


def test_the_records_of_a_packed_dictionary_are_counted() -> None:
    load_hivemind()
    from hivemind.dht.storage import DictionaryDHTValue
    from hivemind.utils import MSGPackSerializer

    dictionary = DictionaryDHTValue()
    for number in range(70):
        dictionary.store(str(number), b"value", 4e9)
    assert records_in(MSGPackSerializer.dumps(dictionary)) == 70
    for junk in (b"", b"\xc1", b"\x91" * 5000, MSGPackSerializer.dumps([1])):
        assert records_in(junk) == 1
