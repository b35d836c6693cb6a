"""Coordinates, round trips and intentions in records."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_records import CHECKPOINT, record

from swarm.dht.distances import (
    ENTRY_BYTES,
    MAX_NEXT_HOPS,
    MAX_RTT_S,
    coordinates,
    next_hops_s,
    pack_next_hops,
    tag_of,
)
from swarm.dht.records import RECORD_LIFETIME_S, ServerRecord, server_key
from swarm.dht.signing import seal
from swarm.errors import RecordError
from swarm.routing.coordinates import Coordinate, Vivaldi
from swarm.spans import PeerId, Span
from swarm.wire.identity import Identity

ALICE, BOB, EVE = (Identity(letter * 32) for letter in (b"a", b"b", b"e"))
KEY = server_key(CHECKPOINT, 3)
NOW = 1_800_000_000.0
UNTIL = NOW + RECORD_LIFETIME_S


def opened(value: bytes) -> ServerRecord:
    return ServerRecord.opened(KEY, ALICE.peer_id, value, UNTIL, now=NOW)


def with_body(**changes: Any) -> bytes:
    body = msgspec.msgpack.decode(record(ALICE.peer_id).pack())
    return seal(ALICE, KEY, msgspec.msgpack.encode({**body, **changes}), UNTIL)


def test_a_place_that_a_liar_has_pushed_away_still_can_be_read() -> None:
    """Who answers our pings as late as it likes, and says where it is, decides where we are."""
    vivaldi = Vivaldi(random.Random(0))
    for _ in range(100):
        vivaldi.observe(BOB.peer_id, 1e-3, Coordinate((MAX_RTT_S, 0.0, 0.0), 1e-4, 0.0))
    for _ in range(8):
        x, y, z = vivaldi.coordinate.position_s
        near = Coordinate((min(MAX_RTT_S, x - 4.0), y, z), 1e-4, 0.0)
        vivaldi.observe(EVE.peer_id, 59.9, near)
    place = vivaldi.coordinate
    assert max(place.position_s) > MAX_RTT_S
    read = opened(record(ALICE.peer_id, coordinate=place).sealed(ALICE, KEY, UNTIL))
    assert read.coordinate is not None
    assert max(map(abs, read.coordinate.position_s)) <= MAX_RTT_S


@given(
    position=st.tuples(*[st.floats(-10, 10)] * 3),
    height=st.floats(0, 10),
    error=st.floats(0, 2),
    rtt=st.floats(1e-6, 50),
)
def test_what_is_packed_is_read_back(
    position: tuple[float, float, float], height: float, error: float, rtt: float
) -> None:
    written = record(
        ALICE.peer_id,
        coordinate=Coordinate(position, height, error),
        next_hops=pack_next_hops({BOB.peer_id: rtt}),
        moving_to=Span(3, 9),
        may_move=True,
    )
    read = opened(written.sealed(ALICE, KEY, UNTIL))
    assert read.coordinate is not None
    assert read.coordinate.position_s == pytest.approx(position, abs=1e-6)
    assert read.coordinate.height_s == pytest.approx(height, abs=1e-6)
    assert read.coordinate.error == pytest.approx(error, abs=1e-3)
    found = next_hops_s([read, record(BOB.peer_id)])
    assert found == {(ALICE.peer_id, BOB.peer_id): pytest.approx(rtt, abs=1e-6)}
    assert read.view().moving_to == Span(3, 9) and read.view().may_move
    assert coordinates([read, record(BOB.peer_id)]) == {ALICE.peer_id: read.coordinate}


def test_records_without_them_have_none() -> None:
    read = opened(record(ALICE.peer_id).sealed(ALICE, KEY, UNTIL))
    assert read.coordinate is None and read.next_hops == b"" and read.moving_to is None
    assert not read.may_move
    assert next_hops_s([read]) == {}


def test_only_the_nearest_next_hops_travel_and_strangers_are_left_out() -> None:
    rtts = {PeerId(f"peer-{number}"): number / 100 for number in range(1, 20)}
    packed = pack_next_hops(rtts)
    assert len(packed) == MAX_NEXT_HOPS * ENTRY_BYTES
    read = record(ALICE.peer_id, next_hops=packed)
    assert next_hops_s([read]) == {}, "none of them is among the servers"
    mine = record(ALICE.peer_id, next_hops=pack_next_hops({ALICE.peer_id: 0.1}))
    assert next_hops_s([mine]) == {}, "nobody is his own next hop"


@pytest.mark.parametrize(
    "changes",
    [
        {"k": [0, 0, 0, 0]},
        {"k": [0, 0, 0, -1, 0]},
        {"k": [0, 0, 0, 0, 2001]},
        {"k": [10**9, 0, 0, 0, 0]},
        {"k": [0.5, 0, 0, 0, 0]},
        {"k": "north"},
        {"k": [[0], 0, 0, 0, 0]},
        {"j": b"x" * (ENTRY_BYTES - 1)},
        {"j": b"x" * ENTRY_BYTES},
        {"j": tag_of(BOB.peer_id) + bytes(4)},
        {"j": (tag_of(BOB.peer_id) + b"\0\0\0\1") * (MAX_NEXT_HOPS + 1)},
        {"j": 7},
        {"z": [20, 31]},
        {"z": [5, 5]},
        {"y": "yes"},
    ],
)
def test_what_is_not_plausible_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        opened(with_body(**changes))


def test_a_full_record_still_fits() -> None:
    full = record(
        ALICE.peer_id,
        0,
        80,
        num_blocks=80,
        block_digests=b"abcd" * 80,
        addresses=("/ip4/203.0.113.117/tcp/31330",) * 4,
        coordinate=Coordinate((1.0, -1.0, 1.0), 0.5, 0.2),
        next_hops=pack_next_hops({PeerId(f"peer-{n}"): 0.1 for n in range(6)}),
        moving_to=Span(0, 80),
        may_move=True,
        sequence=1 << 53,
    )
    assert len(full.sealed(ALICE, KEY, UNTIL)) <= 1024
