"""Distances in records: a network coordinate, and round trips to a few likely next hops.

A peer is named by a tag of `TAG_BYTES`: who reads a record knows all servers of the checkpoint.
"""

import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from swarm.routing.coordinates import DIMENSIONS, Coordinate
from swarm.spans import PeerId

if TYPE_CHECKING:
    from swarm.dht.records import ServerRecord

TAG_BYTES = 6
MAX_NEXT_HOPS = 6
MAX_RTT_S = 60.0
_ENTRY = struct.Struct(">6sI")
ENTRY_BYTES = _ENTRY.size
_MAX_US = int(MAX_RTT_S * 1e6)


def tag_of(peer: str) -> bytes:
    """How a record names another peer."""
    return hashlib.sha256(peer.encode()).digest()[:TAG_BYTES]


def pack_coordinate(place: Coordinate) -> list[int]:
    """`[x, y, z, height, error]`: microseconds, and thousandths. A place beyond what a record may
    say is told as far as it may be: who lies to us about distances must not make ours unreadable.
    """
    position = [
        max(-_MAX_US, min(_MAX_US, round(1e6 * value)))
        for value in (*place.position_s, place.height_s)
    ]
    return [*position, round(1e3 * place.error)]


def unpack_coordinate(values: object) -> object:
    """The coordinate in a record; anything else as it is, for the schema to refuse.

    Raises ValueError for numbers that are no place.
    """
    if not isinstance(values, list):
        return values
    if len(values) != DIMENSIONS + 2 or not all(type(value) is int for value in values):
        raise ValueError(f"a coordinate is {DIMENSIONS + 2} whole numbers")
    *position, height, error = values
    if any(abs(value) > _MAX_US for value in position) or not 0 <= height <= _MAX_US:
        raise ValueError("a coordinate that is farther away than anything")
    if not 0 <= error <= 2000:
        raise ValueError("the error of a coordinate is 0 to 2000 thousandths")
    return Coordinate(tuple(value / 1e6 for value in position), height / 1e6, error / 1e3)


def pack_next_hops(rtt_s: Mapping[PeerId, float]) -> bytes:
    """The nearest `MAX_NEXT_HOPS` of the round trips that were measured."""
    nearest = sorted(rtt_s.items(), key=lambda item: item[1])[:MAX_NEXT_HOPS]
    return b"".join(
        _ENTRY.pack(tag_of(peer), min(_MAX_US, max(1, round(1e6 * rtt)))) for peer, rtt in nearest
    )


def check_next_hops(packed: bytes) -> bytes:
    """Raises ValueError for bytes that are no round trips."""
    if len(packed) % ENTRY_BYTES or len(packed) > MAX_NEXT_HOPS * ENTRY_BYTES:
        raise ValueError(f"{len(packed)} bytes of round trips to next hops")
    if any(not 0 < rtt_us <= _MAX_US for _, rtt_us in _ENTRY.iter_unpack(packed)):
        raise ValueError(f"a round trip to a next hop is at most {MAX_RTT_S:g} s")
    return packed


def coordinates(records: "Iterable[ServerRecord]") -> dict[PeerId, Coordinate]:
    """Of the servers that know where they are."""
    return {one.peer: one.coordinate for one in records if one.coordinate is not None}


def next_hops_s(records: "Iterable[ServerRecord]") -> dict[tuple[PeerId, PeerId], float]:
    """`(server, next hop) -> round trip`, of all pairs in which both are among `records`."""
    listed = list(records)
    peers = {tag_of(one.peer): one.peer for one in listed}
    return {
        (one.peer, peers[tag]): rtt_us / 1e6
        for one in listed
        for tag, rtt_us in _ENTRY.iter_unpack(one.next_hops)
        if tag in peers and peers[tag] != one.peer
    }
