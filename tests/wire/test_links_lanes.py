"""Links that are spread over several streams: when, in what order, and what happens at the end."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from granted_streams import Ends, GrantedNetwork
from hypothesis import given, settings
from hypothesis import strategies as st
from link_peers import ANNA, BERT, CARL, HELLO, Peer, RawStream, raw_stream, two_peers

from swarm.scheduling import link_window
from swarm.scheduling.classes import ServiceClass
from swarm.spans import PeerId
from swarm.wire import widening
from swarm.wire.connection import MAX_AHEAD_BYTES
from swarm.wire.frames import (
    FrameType,
    LaneHello,
    pack_lane,
    pack_plain,
    unpack_hello,
    unpack_lane,
)
from swarm.wire.lanes import LANES, TURN_BYTES, Turns
from swarm.wire.links import Links
from swarm.wire.memory import MemoryNetworkHub, Path
from swarm.wire.network import ByteStream
from swarm.wire.virtual_time import run

DECODE, PREFILL = ServiceClass.DECODE, ServiceClass.PREFILL
MBIT = 125_000.0
LONG = Path(delay_s=0.025, bandwidth_bytes_per_s=100 * MBIT, buffer_bytes=16 * 1024 * 1024)
MEGABYTE = 1 << 20


def lanes(peer: Peer, other: PeerId) -> int:
    stats = peer.links.stats(other)
    assert stats is not None
    return stats.lanes


# ---- what they are for


async def prompts_and_decode(allowed: int) -> tuple[float, float]:
    """What prompts get of 100 Mbit/s over 50 ms, and the p95 of how long decode waits, in seconds
    beyond the way; `allowed` links may have lanes."""
    hub = MemoryNetworkHub(0, LONG)
    peers: list[Peer] = []
    ends: Ends = {}
    async with AsyncExitStack() as stack:
        for name in (ANNA, BERT):
            peer = Peer(hub, name)
            network = GrantedNetwork(peer.network, ends, 2 * LONG.delay_s)
            peer.links = Links(network, peer, control_per_s=1e6)  # type: ignore[arg-type]
            peers.append(await stack.enter_async_context(peer))
        anna, bert = peers
        came: dict[int, float] = {}
        loop = asyncio.get_running_loop()
        bert.on_message = lambda _, message, payload: came.setdefault(  # type: ignore[method-assign]
            message.request, loop.time()
        )
        await anna.links.connect(BERT, 10.0)
        for number in range(20):
            anna.send(BERT, 1000 + number, 12 * MEGABYTE, PREFILL, b"prompt-%d" % (number % 5))
        await asyncio.sleep(2)
        assert lanes(anna, BERT) == lanes(bert, ANNA) == (LANES if allowed else 1)
        stats = bert.links.stats(ANNA)
        assert stats is not None
        began, before, sent = loop.time(), stats.bytes_received, {}
        for number in range(150):
            await asyncio.sleep(0.05)
            sent[number] = loop.time()
            anna.send(BERT, number, 2048, DECODE, b"decode")
        stats = bert.links.stats(ANNA)
        assert stats is not None
        share = (stats.bytes_received - before) / (loop.time() - began) / (100 * MBIT)
        await asyncio.sleep(3)
        waits = sorted(came[number] - when - LONG.delay_s for number, when in sent.items())
        return share, waits[int(0.95 * len(waits))]


def test_a_long_path_does_not_stand_still_for_want_of_a_grant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share, wait_s = run(prompts_and_decode(1))
    assert share >= 0.97
    assert wait_s <= 0.015
    monkeypatch.setattr(widening, "MAX_WIDE_LINKS", 0)
    share, wait_s = run(prompts_and_decode(0))
    assert share <= 0.9, "the streams of this test do not do what go-yamux does"
    assert wait_s >= 0.03


def test_a_short_path_has_one_stream() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        for number in range(5):
            anna.send(BERT, number, MEGABYTE, PREFILL)
        await asyncio.sleep(3)
        assert bert.numbers() == list(range(5))
        assert lanes(anna, BERT) == 1
        assert hub.streams(ANNA, BERT) == 1

    two_peers(body, Path(delay_s=0.001, bandwidth_bytes_per_s=100 * MBIT))


@pytest.mark.parametrize("listens", [True, False])
def test_who_was_dialled_gets_lanes_too(listens: bool) -> None:
    """Also of a client, which nobody can dial."""

    async def main() -> None:
        hub = MemoryNetworkHub(0, LONG)
        async with Peer(hub, ANNA, listens=listens) as anna, Peer(hub, BERT) as bert:
            await anna.links.connect(BERT, 5)
            for number in range(5):
                bert.send(ANNA, number, MEGABYTE, PREFILL)
            await asyncio.sleep(5)
            assert sorted(anna.numbers()) == list(range(5))
            assert lanes(anna, BERT) == lanes(bert, ANNA) == LANES
            assert hub.streams(ANNA, BERT) == LANES
        assert hub.streams(ANNA, BERT) == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


# ---- in order


@given(st.lists(st.integers(28, 70_000), max_size=200))
def test_a_turn_ends_with_the_frame_that_fills_it(sizes: list[int]) -> None:
    turns = Turns()
    assert not any(turns.took(size) for size in sizes)
    assert turns.lane == 0
    turns.spread()
    lane, carried = 1, 0
    for size in sizes:
        assert turns.lane == lane
        carried += size
        assert turns.took(size) == (carried >= TURN_BYTES)
        if carried >= TURN_BYTES:
            lane, carried = (lane + 1) % LANES, 0


messages = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from([DECODE, PREFILL, ServiceClass.CONTROL, ServiceClass.BULK]),
        st.sampled_from([0, 100, 5000, 20_000, 300_000]),
        st.sampled_from([0.0, 0.0, 0.01, 0.2]),
        st.sampled_from([None, None, None, None, None, "reset", "lane"]),
    ),
    min_size=10,
    max_size=60,
)


@settings(max_examples=150)
@given(messages, st.sampled_from([None, 1000]), st.sampled_from([0.0, 0.1]), st.integers(0, 99))
def test_each_message_comes_once_and_in_order_also_when_lanes_break(
    script: list[tuple[bool, ServiceClass, int, float, str | None]],
    shortest_piece: int | None,
    loss: float,
    seed: int,
) -> None:
    async def main() -> None:
        path = Path(0.004, 0.002, 20 * MBIT, 65_536, loss, 0.05, shortest_piece)
        hub = MemoryNetworkHub(seed, path)
        async with Peer(hub, ANNA) as anna, Peer(hub, BERT) as bert:
            ends = {True: (anna, bert), False: (bert, anna)}
            await anna.links.connect(BERT, 5)
            for number, (forward, service_class, size, sleep_s, breaks) in enumerate(script):
                sender, reader = ends[forward]
                session = b"%d" % (number % 3)
                sender.send(reader.id, number, size, service_class, session)
                if breaks == "reset":
                    hub.reset(ANNA, BERT)
                elif breaks == "lane" and hub._streams:
                    hub.random.choice(sorted(hub._streams, key=id)).break_both()
                await asyncio.sleep(sleep_s)
            await asyncio.sleep(60)
            assert anna.lost == bert.lost == []
            for forward, (_, reader) in ends.items():
                expected = [n for n, step in enumerate(script) if step[0] == forward]
                assert sorted(reader.numbers()) == expected
                for session in range(3):
                    of_session = [n for n in reader.numbers() if n % 3 == session]
                    assert of_session == sorted(of_session)
            assert hub.streams(ANNA, BERT) == lanes(anna, BERT)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(link_window, "MAX_STREAM_BYTES", 1)
        patched.setattr(link_window, "MIN_LONG_RTT_S", 0.0)
        run(main())


# ---- the end, and who refuses


def test_goodbye_over_lanes_is_told() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        anna.send(BERT, 1, 2 * MEGABYTE, PREFILL)
        await asyncio.sleep(3)
        assert lanes(anna, BERT) == LANES
        anna.send(BERT, 2, 100_000, PREFILL)
        await anna.links.close()
        await asyncio.sleep(1)
        assert bert.numbers() == [1, 2]
        assert bert.lost == [(ANNA, "the peer closed the link")]
        assert hub.streams(BERT, ANNA) == 0

    two_peers(body, LONG)


def test_a_lane_that_breaks_is_no_loss() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        anna.send(BERT, 1, 2 * MEGABYTE, PREFILL)
        await asyncio.sleep(3)
        of_anna = [stream for stream in hub._streams if stream.owner == ANNA]
        assert len(of_anna) == LANES
        for number in range(10, 15):
            anna.send(BERT, number, MEGABYTE, PREFILL)
        of_anna[3].break_both()
        await asyncio.sleep(10)
        assert sorted(bert.numbers()) == [1, *range(10, 15)]
        assert anna.lost == bert.lost == []
        assert lanes(anna, BERT) == LANES, "the next stream gets lanes, too"

    two_peers(body, LONG)


def test_where_there_is_no_room_for_lanes_the_link_does_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(widening, "MAX_WIDE_LINKS", 1)

    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        async with Peer(hub, CARL) as carl:
            for peer in (anna, carl):
                for number in range(4):
                    peer.send(BERT, number, MEGABYTE, PREFILL)
                await asyncio.sleep(5)
            assert sorted(bert.received) == [
                (peer, number, MEGABYTE) for peer in (ANNA, CARL) for number in range(4)
            ]
            assert (lanes(anna, BERT), lanes(carl, BERT)) == (LANES, 1)
            assert hub.streams(CARL, BERT) == 1

    two_peers(body, LONG)


@pytest.mark.parametrize("answer", [b"", pack_lane(LaneHello(5, 1, 1)), b"\xff" * 100])
def test_who_asks_for_lanes_and_does_not_answer_them_keeps_its_one_stream(answer: bytes) -> None:
    """Frozen, lying, or speaking of something else on every lane."""

    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw: list[RawStream] = []
        carl = hub.network(CARL)

        def accept(stream: ByteStream) -> None:
            raw.append(RawStream(stream))
            stream.write(HELLO if len(raw) == 1 else answer)

        carl.on_stream = accept
        await anna.links.connect(CARL, 5)
        raw[0].stream.write(pack_plain(FrameType.WIDEN))
        await asyncio.sleep(1)
        assert len(raw) == 1 + widening.AT_ONCE
        for _ in range(20):
            raw[0].stream.write(pack_plain(FrameType.PING, 3))
            await asyncio.sleep(1)
        assert all(stream.ended is not None for stream in raw[1:])
        assert raw[0].ended is None
        assert anna.links.peers() == [CARL]
        assert lanes(anna, CARL) == 1 and hub.streams(ANNA, CARL) == 1
        await carl.close()

    two_peers(body)


class RawLanes:
    """A hand-driven peer with a link to BERT and lanes of it."""

    def __init__(self, hub: MemoryNetworkHub) -> None:
        self._hub = hub
        self.lanes: list[RawStream] = []

    async def greet(self, count: int, **wrong: Any) -> None:
        self.network = self._hub.network(CARL)
        first = await raw_stream(self.network, HELLO)
        self.lanes = [first]
        self.incarnation = unpack_hello(first.frames[0]).incarnation
        for lane in range(1, count):
            stream = RawStream(await self.network.dial(BERT, 5))
            hello = LaneHello(77, 1, lane)._replace(**wrong)
            stream.stream.write(pack_lane(hello))
            self.lanes.append(stream)
            await asyncio.sleep(0.1)


def test_lanes_that_a_peer_opens_are_answered_and_used_after_spread() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw = RawLanes(hub)
        await raw.greet(LANES)
        for lane, stream in enumerate(raw.lanes[1:], 1):
            assert unpack_lane(stream.frames[0]) == LaneHello(raw.incarnation, 1, lane)
        bert.send(CARL, 1, 100)
        await asyncio.sleep(0.1)
        assert lanes(bert, CARL) == 1
        assert all(len(stream.frames) == 1 for stream in raw.lanes[1:])
        # Ahead of its turn, a ping on the second lane; then the turn.
        raw.lanes[1].stream.write(pack_plain(FrameType.PING, 5))
        await asyncio.sleep(0.1)
        assert all(frame.number != 5 for stream in raw.lanes for frame in stream.frames)
        raw.lanes[0].stream.write(pack_plain(FrameType.SPREAD))
        await asyncio.sleep(0.1)
        assert raw.lanes[0].frames[-1].type == FrameType.SPREAD
        assert [(f.type, f.number) for f in raw.lanes[1].frames[1:]] == [(FrameType.PONG, 5)]
        assert lanes(bert, CARL) == LANES

    two_peers(body)


@pytest.mark.parametrize(
    "wrong", [{"incarnation": 78}, {"stream": 2}, {"lane": 0}, {"lane": LANES}, {"lane": 3}]
)
def test_lanes_of_no_link_are_closed(wrong: dict[str, int]) -> None:
    """The last one is there twice."""

    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw = RawLanes(hub)
        await raw.greet(5, **wrong)
        refused = [stream for stream in raw.lanes[1:] if stream.ended is not None]
        assert len(refused) == (3 if wrong == {"lane": 3} else 4)
        assert raw.lanes[0].ended is None
        assert bert.links.peers() == [CARL]

    two_peers(body)


@pytest.mark.parametrize("count", [1, 5, LANES])
def test_a_peer_that_breaks_the_rules_of_lanes_loses_its_own_link(count: int) -> None:
    """Spread before all are there; twice; asked of who has not dialled; a lane within the link."""
    spread, widen = pack_plain(FrameType.SPREAD), pack_plain(FrameType.WIDEN)
    junk = [widen, pack_lane(LaneHello(77, 1, 1)), spread if count < LANES else spread + spread]

    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, 5)
        for each in junk:
            raw = RawLanes(hub)
            await raw.greet(count)
            raw.lanes[0].stream.write(each)
            if each == spread + spread:
                raw.lanes[1].stream.write(spread)
            await asyncio.sleep(1)
            assert all(stream.ended is not None for stream in raw.lanes)
            await raw.network.close()
            await asyncio.sleep(15)
        assert bert.links.peers() == [ANNA]

    two_peers(body)


def test_what_comes_out_of_turn_is_not_read_for_ever() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw = RawLanes(hub)
        await raw.greet(LANES)
        raw.lanes[0].stream.write(pack_plain(FrameType.SPREAD))
        ping = pack_plain(FrameType.PING, 1)
        piece = ping * (16_384 // len(ping))
        for _ in range(20):
            raw.lanes[7].stream.write(piece)
        await asyncio.sleep(2)
        ours = next(s for s in hub._streams if s is raw.lanes[7].stream.other)  # type: ignore[attr-defined]
        assert ours._arriving_bytes >= 20 * len(piece) - MAX_AHEAD_BYTES - 2 * len(piece)
        assert bert.links.peers() == [CARL]

    two_peers(body)
