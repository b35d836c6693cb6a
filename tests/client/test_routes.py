"""Which chain a client takes: what it measured, over what servers announce."""

import asyncio
import random
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import Any, cast

import pytest

from swarm.client.improving import (
    LOOK_S,
    LOOKS,
    MIN_GAIN_S,
    MUCH_BETTER,
    REST_S,
    Patience,
)
from swarm.client.probing import silent_servers
from swarm.client.replacement import replaced_route
from swarm.client.routes import ClientRouter
from swarm.client.swarm import Swarm
from swarm.dht.distances import pack_next_hops
from swarm.dht.records import ServerRecord
from swarm.errors import MissingBlocksError, SwarmError
from swarm.routing.coordinates import Coordinate
from swarm.routing.view import Numerics, ServerState, SwarmView
from swarm.sessions.messages import MAX_HOPS, Hop
from swarm.spans import PeerId, SessionId, Span
from swarm.wire.frames import PROTOCOL_VERSION
from swarm.wire.identity import Identity

CHECKPOINT = "c" * 40
BLOCKS = 4
ME = Identity(b"m" * 32).peer_id
PEERS = {name: Identity(name.encode() * 32).peer_id for name in "abcdef"}


class World:
    """A client's router, a clock, and records."""

    def __init__(self, *records: ServerRecord, seed: int = 0) -> None:
        self.now = 1000.0
        self.router = ClientRouter(
            ME, random.Random(seed), lambda: self.now, activation_bytes=4096.0
        )
        self.read(*records)

    def read(self, *records: ServerRecord) -> None:
        self.records = records
        self.router.learn(records)

    @property
    def view(self) -> SwarmView:
        return SwarmView(CHECKPOINT, BLOCKS, tuple(record.view() for record in self.records))

    def route(self, rtt_s: dict[str, float] | None = None, **changes: Any) -> list[str]:
        """The names of the hops' servers."""
        rtts = {PEERS[name]: rtt for name, rtt in (rtt_s or {}).items()}
        hops = self.router.route(self.view, rtt_s=rtts, tokens_needed=100, **changes)
        names = {peer: name for name, peer in PEERS.items()}
        return [names[PeerId(hop.peer)] for hop in hops]


def record(name: str, start: int = 0, end: int = BLOCKS, **changes: Any) -> ServerRecord:
    fields: dict[str, Any] = {
        "peer": PEERS[name],
        "span": Span(start, end),
        "state": ServerState.ONLINE,
        "checkpoint": CHECKPOINT,
        "model": "tiny",
        "num_blocks": BLOCKS,
        "numerics": Numerics("float32"),
        "decode_ms_per_block": 1.0,
        "prefill_tokens_per_s": 1000.0,
        "cache_tokens_free": 1000,
        "cache_tokens_total": 1000,
        "version": "1",
        "protocol": PROTOCOL_VERSION,
        "sequence": 1,
    }
    return ServerRecord(**{**fields, **changes})


def test_the_nearer_the_faster_and_the_idler_server_is_taken() -> None:
    equal = {"a": 0.01, "b": 0.01}
    assert World(record("a"), record("b")).route({"a": 0.01, "b": 0.3}) == ["a"]
    assert World(record("a"), record("b", decode_ms_per_block=9.0)).route(equal) == ["a"]
    assert World(record("a"), record("b", queue_wait_ms=90.0)).route(equal) == ["a"]
    assert World(record("a"), record("b", sessions=9)).route(equal) == ["a"]
    assert World(record("a"), record("b", max_upload_mbit=0.1)).route(equal) == ["a"]


def test_a_part_of_a_span_is_used() -> None:
    world = World(record("a", 0, 3), record("b", 2, 4, decode_ms_per_block=0.1))
    hops = world.router.route(world.view, rtt_s={}, tokens_needed=100)
    assert [(hop.start, hop.end) for hop in hops] == [(0, 2), (2, 4)]


def test_servers_that_measured_each_other_are_chained() -> None:
    near = pack_next_hops({PEERS["c"]: 0.001, PEERS["d"]: 0.5})
    world = World(record("a", 0, 2, next_hops=near), record("c", 2, 4), record("d", 2, 4))
    rtts = dict.fromkeys("acd", 0.1)
    assert {tuple(world.route(rtts)) for _ in range(20)} == {("a", "c")}


def test_coordinates_tell_who_is_near_whom() -> None:
    here, there = Coordinate((0.0, 0.0, 0.0), 0.001), Coordinate((0.4, 0.0, 0.0), 0.001)
    world = World(
        record("a", 0, 2, coordinate=here),
        record("c", 2, 4, coordinate=there),
        record("d", 2, 4, coordinate=here),
    )
    assert {tuple(world.route(dict.fromkeys("acd", 0.1))) for _ in range(20)} == {("a", "d")}


def test_what_a_server_says_now_counts_more_than_its_record_until_there_is_a_newer_one() -> None:
    world = World(record("a", sessions=0), record("b", sessions=0))
    rtts = {"a": 0.001, "b": 0.001}
    world.now += 1
    world.router.heard(PEERS["a"], 8, 0.0, 1000)
    assert {tuple(world.route(rtts)) for _ in range(20)} == {("b",)}
    world.now += 1
    world.read(record("a", sequence=2), record("b", sessions=8, sequence=2))
    assert {tuple(world.route(rtts)) for _ in range(20)} == {("a",)}


def test_own_sessions_count_until_servers_announce_them() -> None:
    world = World(record("a"), record("b"))
    rtts = {"a": 0.001, "b": 0.001}
    counts = {"a": 0, "b": 0}
    for number in range(20):
        world.now += 0.01
        (name,) = world.route(rtts)
        counts[name] += 1
        hops = (Hop(PEERS[name], 0, BLOCKS),)
        world.router.opened(SessionId(bytes([number]) * 16), hops)
    assert counts == {"a": 10, "b": 10}
    for number in range(20):
        world.router.closed(SessionId(bytes([number]) * 16))
    assert {tuple(world.route(rtts)) for _ in range(40)} == {("a",), ("b",)}


def test_equal_clients_do_not_all_take_the_same_replica() -> None:
    taken = [World(record("a"), record("b"), seed=seed).route()[0] for seed in range(200)]
    assert 80 <= taken.count("a") <= 120


def test_a_server_that_was_slower_than_it_says_is_left_and_forgiven() -> None:
    world = World(record("a", decode_ms_per_block=0.1), record("b"))
    rtts = {"a": 0.01, "b": 0.01}
    hops = (Hop(PEERS["a"], 0, BLOCKS),)
    assert world.route(rtts) == ["a"]
    predicted = world.router.step_s(world.view, hops, {PEERS["a"]: 0.01}, announced=True)
    assert predicted is not None
    world.router.saw_step(hops, 0.5 - predicted)
    assert world.route(rtts) == ["b"]
    seen = world.router.step_s(world.view, hops, {PEERS["a"]: 0.01})
    assert seen == pytest.approx(0.5, rel=0.01)
    world.now += 1000
    assert world.route(rtts) == ["a"]


def test_what_a_piece_of_a_prompt_takes_is_predicted_by_what_servers_say_alone() -> None:
    world = World(record("a", 0, 2), record("b", 2, 4, prefill_tokens_per_s=10.0))
    hops = (Hop(PEERS["a"], 0, 2), Hop(PEERS["b"], 2, 4))
    rtts = {PEERS["a"]: 0.01, PEERS["b"]: 0.01}
    predicted = world.router.chunk_s(world.view, hops, rtts, 500)
    assert predicted == pytest.approx(500 / 1000 + 500 / 10, rel=0.05)
    world.router.saw_step(hops, 5.0)
    assert world.router.chunk_s(world.view, hops, rtts, 500) == predicted
    assert world.router.chunk_s(world.view, (Hop(PEERS["c"], 0, 4),), rtts, 500) is None


def test_quantized_weights_are_the_last_resort() -> None:
    quantized = Numerics("float32", "int8")
    fast = record("a", decode_ms_per_block=0.01, numerics=quantized)
    assert World(fast, record("b", decode_ms_per_block=50.0)).route() == ["b"]
    assert World(fast).route() == ["a"]


def test_who_is_preferred_is_not_when_its_chains_are_too_long() -> None:
    blocks = MAX_HOPS + 1
    short = record("a", num_blocks=blocks, span=Span(0, blocks)).view()
    many = [
        replace(short, peer=PeerId(f"p{number}"), span=Span(number, number + 1))
        for number in range(blocks)
    ]
    world = World()
    for unwanted in (
        replace(short, numerics=Numerics("float32", "int8")),
        replace(short, moving_to=Span(0, 1)),
    ):
        view = SwarmView(CHECKPOINT, blocks, (*many, unwanted))
        (hop,) = world.router.route(view, rtt_s={}, tokens_needed=100)
        assert hop.peer == PEERS["a"]
    with pytest.raises(SwarmError, match=str(MAX_HOPS)):
        world.router.route(SwarmView(CHECKPOINT, blocks, tuple(many)), rtt_s={}, tokens_needed=9)


def test_what_nobody_serves_is_named() -> None:
    world = World(record("a", 0, 2))
    with pytest.raises(MissingBlocksError) as caught:
        world.route()
    assert caught.value.blocks == ("2:4",)
    with pytest.raises(MissingBlocksError):
        World(record("a")).route(avoid={PEERS["a"]})


def test_one_router_does_not_forget_sessions_that_move() -> None:
    world = World(record("a"), record("b"))
    session = SessionId(bytes(16))
    world.router.opened(session, (Hop(PEERS["a"], 0, BLOCKS),))
    world.router.opened(session, (Hop(PEERS["b"], 0, BLOCKS),))
    assert {tuple(world.route({"a": 0.001, "b": 0.001})) for _ in range(20)} == {("a",)}


def test_a_lost_hop_is_replaced_by_the_best_other() -> None:
    world = World(record("a", 0, 2), record("b", 2, 4), record("c", 1, 4), record("d", 2, 4))
    hops = (Hop(PEERS["a"], 0, 2), Hop(PEERS["b"], 2, 4))
    route = replaced_route(
        world.view,
        world.router,
        hops,
        {PEERS["b"]},
        rtt_s={PEERS["c"]: 0.01, PEERS["d"]: 0.2},
        tokens_needed=100,
        avoid={PEERS["b"]},
    )
    assert route == (Hop(PEERS["a"], 0, 2), Hop(PEERS["c"], 2, 4))


def test_a_session_goes_only_when_much_is_won_again_and_again() -> None:
    now = 0.0
    patience = Patience(now, random.Random(0))
    assert not patience.is_due(now)

    def look(present_s: float, other_s: float) -> bool:
        nonlocal now
        now += 1.5 * LOOK_S
        assert patience.is_due(now)
        return patience.look(present_s, other_s, now)

    assert not any(look(0.1, 0.08) for _ in range(10)), "not much better"
    assert not any(look(0.01, 0.01 - MIN_GAIN_S / 2) for _ in range(10)), "too little"
    for _ in range(LOOKS - 1):
        assert not look(0.1, 0.05)
    assert not look(0.1, 0.09), "it was so for a moment only"
    assert [look(0.1, 0.05) for _ in range(LOOKS)] == [False] * (LOOKS - 1) + [True]
    assert not patience.is_due(now + REST_S * 0.99)


def test_sessions_that_look_for_a_route_at_once_see_each_other() -> None:
    """Before any of them is open, and whatever servers say meanwhile."""
    world = World(record("a"), record("b", decode_ms_per_block=1.1))
    counts = Counter[str]()
    for number in range(20):
        (name,) = world.route({"a": 0.001, "b": 0.001})
        counts[name] += 1
        world.router.planned(SessionId(bytes([number]) * 16), (Hop(PEERS[name], 0, BLOCKS),))
        world.now += 0.01
        world.router.heard(PEERS["a"], 0, 0.0, 1000)
    assert 8 <= counts["a"] <= 12, counts


def test_load_is_time_and_is_gone_when_sessions_are() -> None:
    """In milliseconds like all else: four sessions make the faster server the slower one."""
    world = World(record("a"), record("b", decode_ms_per_block=1.5))
    rtts = {"a": 0.001, "b": 0.001}
    sessions = [SessionId(bytes([number]) * 16) for number in range(4)]
    assert world.route(rtts) == ["a"]
    for session in sessions:
        world.router.opened(session, (Hop(PEERS["a"], 0, BLOCKS),))
    assert world.route(rtts) == ["b"]
    for session in sessions:
        world.router.closed(session)
    assert world.route(rtts) == ["a"]


def test_what_every_way_takes_longer_does_not_drive_sessions_to_and_fro() -> None:
    """A slow client makes all servers look slower than they announce: one other way is tried."""
    world = World(*(record(name) for name in "abc"))
    rtts = dict.fromkeys("abc", 0.001)
    at, moved = "a", 0
    for _ in range(100):
        world.now += 60.0
        hops = (Hop(PEERS[at], 0, BLOCKS),)
        world.router.saw_step(hops, 0.05)
        peers = {PEERS[name]: rtt for name, rtt in rtts.items()}
        best = world.router.route(world.view, rtt_s=peers, tokens_needed=0)
        present_s = world.router.step_s(world.view, hops, peers)
        other_s = world.router.step_s(world.view, best, peers)
        assert present_s is not None and other_s is not None
        if other_s <= MUCH_BETTER * present_s:
            moved += 1
            at = next(name for name in "abc" if PEERS[name] == best[0].peer)
    assert moved == 1


def test_every_server_that_may_be_taken_is_measured_not_only_those_of_one_side() -> None:
    class Network:
        """The part of a `Swarm` that probing uses."""

        def __init__(self) -> None:
            self.rtts: dict[PeerId, float] = {}

        def rtt_s(self, peers: Collection[PeerId]) -> dict[PeerId, float]:
            return self.rtts

        async def connect(self, record: ServerRecord, timeout_s: float) -> None:
            self.rtts[record.peer] = 0.01

        def doubted(self, records: Collection[ServerRecord]) -> set[PeerId]:
            return set()

    network = Network()
    records = [record(name, 0, 2) for name in "abc"] + [record(name, 2, 4) for name in "def"]
    wanted = [Span(0, BLOCKS)]
    assert asyncio.run(silent_servers(cast(Swarm, network), records, wanted)) == set()
    assert network.rtts.keys() == {one.peer for one in records}


def test_a_server_without_a_link_is_guessed_by_our_own_coordinate() -> None:
    def at(x: float) -> Coordinate:
        return Coordinate((x, 0.0, 0.0), 0.001, 0.1)

    world = World(
        record("a", coordinate=at(0.0), decode_ms_per_block=10.0),
        record("b", coordinate=at(0.2), decode_ms_per_block=10.0),
        record("c", coordinate=at(0.02), decode_ms_per_block=0.1),
        record("d", coordinate=at(0.5), decode_ms_per_block=0.1),
    )
    assert {tuple(world.route({"a": 0.005, "b": 0.2})) for _ in range(20)} == {("c",)}


def test_servers_that_are_about_to_move_get_no_session_that_others_can_take() -> None:
    leaving = record("a", decode_ms_per_block=0.1, moving_to=Span(0, 2))
    assert World(leaving, record("b")).route() == ["b"]
    assert World(leaving).route() == ["a"]
    quantized = record("c", numerics=Numerics("float32", "int8"))
    assert World(leaving, quantized).route() == ["a"]
