"""Records: what is packed is read back, and nothing else is."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from server_records import CHECKPOINT, record

from swarm.dht.records import (
    MAX_LIFETIME_S,
    MIN_MEASURED,
    RECORD_LIFETIME_S,
    SHARDS,
    ModelRecord,
    ServerRecord,
    model_key,
    server_key,
    shard_of,
)
from swarm.dht.signing import MAX_VALUE_BYTES, seal
from swarm.errors import RecordError
from swarm.routing.view import Numerics, ServerState
from swarm.spans import Span
from swarm.wire.identity import Identity

ALICE = Identity(b"a" * 32)
BOB = Identity(b"b" * 32)
KEY = server_key(CHECKPOINT, 3)
NOW = 1_800_000_000.0
UNTIL = NOW + RECORD_LIFETIME_S


def opened(value: bytes, *, key: str = KEY, peer: str = ALICE.peer_id, until: float = UNTIL) -> Any:
    return ServerRecord.opened(key, peer, value, until, now=NOW)


def sealed_body(**changes: Any) -> bytes:
    """A record of Alice's, correctly signed, whose body has other values under some keys."""
    body = msgspec.msgpack.decode(record(ALICE.peer_id).pack())
    return seal(ALICE, KEY, msgspec.msgpack.encode({**body, **changes}), UNTIL)


names = st.text(min_size=1, max_size=20)


@given(
    start=st.integers(0, 100),
    length=st.integers(1, 126),
    state=st.sampled_from(ServerState),
    digests=st.booleans(),
    numerics=st.builds(Numerics, names, names, names),
    speed=st.just(0.0) | st.floats(MIN_MEASURED, 1000),
    cache=st.tuples(st.integers(0, 1 << 30), st.integers(0, 1 << 30)).map(sorted),
    addresses=st.lists(st.just("/ip4/203.0.113.7/tcp/31330"), max_size=4),
    sequence=st.integers(0, 1 << 53),
)
def test_what_is_packed_is_read_back(
    start: int,
    length: int,
    state: ServerState,
    digests: bool,
    numerics: Numerics,
    speed: float,
    cache: list[int],
    addresses: list[str],
    sequence: int,
) -> None:
    written = record(
        ALICE.peer_id,
        start,
        start + length,
        num_blocks=start + length,
        state=state,
        block_digests=b"abcd" * length if digests else b"",
        numerics=numerics,
        decode_ms_per_block=speed,
        cache_tokens_free=cache[0],
        cache_tokens_total=cache[1],
        addresses=tuple(addresses),
        sequence=sequence,
    )
    value = written.sealed(ALICE, KEY, UNTIL)
    assert len(value) <= MAX_VALUE_BYTES
    assert opened(value) == written


def test_a_server_of_all_blocks_of_the_largest_model_fits() -> None:
    full = record(
        ALICE.peer_id,
        0,
        126,
        num_blocks=126,
        block_digests=b"abcd" * 126,
        model="Meta-Llama-3.1-405B-Instruct",
        public_name="a volunteer with a long name, 60 characters at the very most"[:60],
        addresses=("/ip4/203.0.113.117/tcp/31330",) * 4,
        sequence=1 << 53,
    )
    assert len(full.sealed(ALICE, KEY, UNTIL)) <= 1024


def test_a_record_that_is_too_large_is_not_sent() -> None:
    large = record(ALICE.peer_id, 0, 300, num_blocks=300, block_digests=b"abcd" * 300)
    with pytest.raises(RecordError, match="over the limit"):
        large.sealed(ALICE, KEY, UNTIL)


@given(st.data())
def test_no_changed_bit_is_accepted(data: st.DataObject) -> None:
    value = bytearray(record(ALICE.peer_id).sealed(ALICE, KEY, UNTIL))
    position = data.draw(st.integers(0, len(value) * 8 - 1))
    value[position // 8] ^= 1 << position % 8
    with pytest.raises(RecordError):
        opened(bytes(value))


def test_a_record_is_bound_to_its_key_owner_and_expiration() -> None:
    value = record(ALICE.peer_id).sealed(ALICE, KEY, UNTIL)
    with pytest.raises(RecordError, match="not signed by it"):
        opened(value, key=server_key(CHECKPOINT, 4))
    with pytest.raises(RecordError, match="not signed by it"):
        opened(value, key=server_key("another-checkpoint", 3))
    with pytest.raises(RecordError, match="not signed by it"):
        opened(value, peer=BOB.peer_id)
    with pytest.raises(RecordError, match="not signed by it"):
        opened(value, until=UNTIL + 1)
    with pytest.raises(RecordError, match="cannot sign a record"):
        record(ALICE.peer_id).sealed(BOB, KEY, UNTIL)


@pytest.mark.parametrize(
    ("until", "reason"),
    [
        (NOW - 1, "expired 1.0 s ago"),
        (NOW + MAX_LIFETIME_S + 60, "its clock or ours is wrong"),
        (math.inf, "not a signed value"),
        (math.nan, "not a signed value"),
    ],
)
def test_a_record_of_another_time_is_refused(until: float, reason: str) -> None:
    value = record(ALICE.peer_id).sealed(ALICE, KEY, until)
    with pytest.raises(RecordError, match=reason):
        opened(value, until=until)


@pytest.mark.parametrize(
    ("key", "junk"),
    [
        ("b", [5, 31]),
        ("b", [5, 5]),
        ("b", [-1, 5]),
        ("b", [0, 1, 2]),
        ("b", "0:10"),
        ("b", [0.0, 10.0]),
        ("s", "asleep"),
        ("s", 1),
        ("c", "short"),
        ("c", "a/../../b" * 3),
        ("m", ""),
        ("n", 0),
        ("n", 10**9),
        ("n", True),
        ("h", b"abc"),
        ("q", ["float32", "none"]),
        ("q", ["float32", "none", "x" * 30]),
        ("d", math.nan),
        ("d", math.inf),
        ("d", -1.0),
        ("d", 1e12),
        ("d", "1.0"),
        ("d", 5e-324),
        ("w", 1e-9),
        ("p", 1e-300),
        ("l", 5e-324),
        ("p", -0.5),
        ("f", 9000),
        ("f", -1),
        ("t", 1 << 60),
        ("w", -3.0),
        ("o", -1),
        ("u", "x" * 61),
        ("a", ["/ip4/1.2.3.4/tcp/1"] * 5),
        ("a", ["not an address"]),
        ("a", ["/ip4/" + "1" * 200]),
        ("v", ""),
        ("x", 0),
        ("i", -1),
    ],
)
def test_implausible_values_are_refused_with_their_name(key: str, junk: object) -> None:
    with pytest.raises(RecordError, match=f"a record of {ALICE.peer_id} is malformed: ."):
        opened(sealed_body(**{key: junk}))


@given(st.binary(max_size=300))
def test_any_signed_bytes_are_a_record_or_a_record_error(body: bytes) -> None:
    with pytest.raises(RecordError):
        opened(seal(ALICE, KEY, body, UNTIL))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_error(value: bytes) -> None:
    with pytest.raises(RecordError):
        opened(value)


def test_fields_of_later_versions_are_ignored_and_other_majors_refused() -> None:
    assert opened(sealed_body(zz=[1, 2], zy=None)) == record(ALICE.peer_id)
    value = bytearray(sealed_body())
    value[64] = 2
    with pytest.raises(RecordError, match="protocol 2; this is 1"):
        opened(bytes(value))


def test_whole_numbers_are_taken_for_fractions() -> None:
    assert opened(sealed_body(d=2)).decode_ms_per_block == 2.0


def test_digests_belong_to_blocks() -> None:
    one = record(ALICE.peer_id, 10, 12, block_digests=b"aaaabbbb")
    assert [one.digest_of(block) for block in (9, 10, 11, 12)] == [None, b"aaaa", b"bbbb", None]
    assert record(ALICE.peer_id).digest_of(0) is None


def test_the_view_has_what_routing_needs() -> None:
    view = record(ALICE.peer_id, 3, 7).view()
    assert (view.peer, view.span, view.checkpoint) == (ALICE.peer_id, Span(3, 7), CHECKPOINT)
    assert (view.decode_ms_per_block, view.cache_tokens_free) == (0.75, 4000)


def test_our_own_records_are_checked_too() -> None:
    with pytest.raises(ValidationError, match="more free cache than cache"):
        record(ALICE.peer_id, cache_tokens_free=9000)
    with pytest.raises(ValidationError, match="the peer id is not one"):
        record("nobody")


def test_the_index_of_models() -> None:
    key = model_key(shard_of(ALICE.peer_id))
    entry = ModelRecord(peer=ALICE.peer_id, checkpoint=CHECKPOINT, model="m", num_blocks=30)
    value = entry.sealed(ALICE, key, UNTIL)
    assert ModelRecord.opened(key, ALICE.peer_id, value, UNTIL, now=NOW) == entry
    with pytest.raises(RecordError):
        ServerRecord.opened(key, ALICE.peer_id, value, UNTIL, now=NOW)


def test_peers_spread_over_all_shards() -> None:
    shards = [shard_of(Identity(bytes([number]) * 32).peer_id) for number in range(256)]
    assert set(shards) == set(range(SHARDS))


@pytest.mark.parametrize(
    "value",
    [
        b"\x91" * 700 + b"\xc0",  # lists in lists
        b"\x81\xa1a" * 250 + b"\xc0",  # maps in maps
        b"\x91\x91\x01",
        b"\x81\x91\x01\x01",  # a map with a list as a key
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\xc7\x01\x05x",  # an extension
    ],
)
@pytest.mark.parametrize("key", [b"\xa1a", b"\xa1s", b"\xa1q", b"\xa1d", b"\xa1b"])
def test_a_deep_or_odd_body_is_one_malformed_record(key: bytes, value: bytes) -> None:
    sealed = seal(ALICE, KEY, b"\x81" + key + value, UNTIL)
    with pytest.raises(RecordError, match="is malformed"):
        opened(sealed)
