"""Peers that break the rules of a link, or flood it: one's own link suffers, no other."""

import asyncio
import logging
from itertools import pairwise

import pytest
from link_peers import ANNA, BERT, CARL, HELLO, STATUS, Peer, data, raw_link, two_peers, whole

from swarm.sessions.messages import Message
from swarm.spans import PeerId
from swarm.wire.connection import FRAMES_A_TURN, MAX_AHEAD_BYTES
from swarm.wire.frames import (
    HEADER,
    MAX_MESSAGE_BYTES,
    PRELUDE,
    FrameType,
    Hello,
    Range,
    pack_ack,
    pack_hello,
    pack_plain,
)
from swarm.wire.inbox import CREDIT_BYTES
from swarm.wire.link import UNFINISHED_S
from swarm.wire.memory import MemoryNetworkHub, Path
from swarm.wire.virtual_time import run


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff" * 100,
        HELLO,
        data(0, whole(b"\x81\xa4kind\xa4none")),
        data(0, whole(b"\xc1\xc1\xc1")),
        data(0, PRELUDE.pack(2**32 - 1, 10), flags=1),
        data(0, PRELUDE.pack(100, 101), flags=1),
        data(0, PRELUDE.pack(1000, 10)),
        data(0, b"1234"),
        data(0, STATUS, flags=2),
        data(0, whole(STATUS, bytes(10)), flags=1),
        data(0, PRELUDE.pack(1000, 10), flags=1) + data(0, bytes(10), flags=2),
        data(0, PRELUDE.pack(1000, 10), flags=1) + data(0, PRELUDE.pack(1000, 10), flags=1),
        data(0, PRELUDE.pack(1000, 10), flags=1) + data(0, b"1", flags=0, service_class=2),
        b"".join(data(i, PRELUDE.pack(MAX_MESSAGE_BYTES, 10), flags=1) for i in range(5)),
        b"".join(data(i, PRELUDE.pack(100, 10), flags=1) for i in range(1025)),
        pack_ack(1, [], 0),
        pack_ack(0, [Range(1, 2**60)], 0),
    ],
)
def test_a_broken_rule_closes_that_link_only(junk: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, timeout_s=5)
        raw = await raw_link(hub)
        assert set(bert.links.peers()) == {ANNA, CARL}
        raw.stream.write(junk)
        await asyncio.sleep(1)
        assert raw.ended is not None
        assert bert.links.peers() == [ANNA]
        assert [peer for peer, _ in bert.lost] == [CARL]
        anna.send(BERT, 1)
        await asyncio.sleep(1)
        assert bert.received == [(ANNA, 1, 0)]

    with caplog.at_level(logging.WARNING):
        two_peers(body)
    assert caplog.text.count(CARL) == 1
    assert "Traceback" not in caplog.text


def test_no_credit_no_bytes() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw = await raw_link(hub, pack_hello(Hello(77, 0, 1, True, 0, (), 10_000)))
        for number in range(100):
            bert.send(CARL, number, 1000)
        await asyncio.sleep(0.5)
        sent = [frame for frame in raw.frames if frame.type == FrameType.DATA]
        assert sum(len(frame.body) for frame in sent) <= 10_000
        assert len(sent) == 9
        raw.stream.write(pack_ack(0, [Range(1, 3)], 20_000))
        await asyncio.sleep(0.5)
        sent = [frame for frame in raw.frames if frame.type == FrameType.DATA]
        assert len(sent) == 19
        assert [frame.number for frame in sent] == list(range(19))

    two_peers(body)


def test_duplicates_are_dropped_and_gaps_acknowledged() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw = await raw_link(hub)
        message = whole(STATUS, b"\x05" * 10)
        for number in (0, 3, 3, 0, 4):
            raw.stream.write(data(number, message))
        raw.stream.write(data(3, message[:20], flags=1) + data(3, message[20:], flags=2))
        await asyncio.sleep(0.2)
        assert bert.received == [(CARL, 5, 10)] * 3
        acks = [frame for frame in raw.frames if frame.type == FrameType.ACK]
        assert acks[-1].acknowledged == 1
        assert bytes(acks[-1].body) == pack_ack(1, [Range(3, 5)], 0)[HEADER.size :]

    two_peers(body)


def test_a_message_that_never_ends_loses_the_link() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw = await raw_link(hub)
        raw.stream.write(data(0, PRELUDE.pack(1000, 10), flags=1))
        for number in range(int(2 * UNFINISHED_S) + 2):
            raw.stream.write(pack_plain(FrameType.PING, number))
            await asyncio.sleep(1)
        assert raw.ended is not None
        assert bert.lost[0][0] == CARL
        assert "nothing more of message 0" in bert.lost[0][1]

    two_peers(body)


def test_a_flood_of_control_messages_is_slowed_down_and_kept_in_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        async with Peer(hub, BERT, control_per_s=10) as bert, Peer(hub, ANNA) as anna:
            await anna.links.connect(BERT, timeout_s=5)
            for number in range(200):
                anna.send(BERT, number)
            await asyncio.sleep(5)
            assert 80 < len(bert.received) < 120
            await asyncio.sleep(20)
            assert bert.numbers() == list(range(200))
            assert anna.lost == bert.lost == []

    run(main())
    assert caplog.text.count("slowed down") == 1


@pytest.mark.parametrize(
    "flood",
    [
        pack_plain(FrameType.PONG, 7) * 200,
        pack_ack(0, (), CREDIT_BYTES) * 200,
        data(0, whole(STATUS)) * 200,
        data(1, PRELUDE.pack(1000, 900), flags=1) + data(1, b"x", flags=0) * 200,
    ],
    ids=["pongs", "acknowledgements", "messages again", "fragments of a byte"],
)
def test_a_flood_of_frames_that_bring_nothing_is_slowed_down(flood: bytes) -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        async with Peer(hub, BERT, control_per_s=10) as bert:
            raw = await raw_link(hub)
            raw.stream.write(data(0, whole(STATUS)) + flood + data(2, whole(STATUS)))
            for _ in range(10):
                await asyncio.sleep(1)
                raw.stream.write(pack_plain(FrameType.PING))
            # 50 at once, then 10 a second.
            assert len(bert.received) == 1
            for _ in range(10):
                await asyncio.sleep(1)
                raw.stream.write(pack_plain(FrameType.PING))
            assert len(bert.received) == 2
            assert bert.lost == []

    run(main())


def test_who_sends_faster_than_is_read_is_kept_waiting_in_the_network() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(path=Path(buffer_bytes=MAX_AHEAD_BYTES))
        async with Peer(hub, BERT, control_per_s=100) as bert:
            raw = await raw_link(hub)
            pings = [pack_plain(FrameType.PING, number) for number in range(1000)]
            taken = sum(map(len, pings))
            while raw.stream.write(b"".join(pings)):
                taken += sum(map(len, pings))
                await asyncio.sleep(0.01)
                assert taken < 10 * MAX_AHEAD_BYTES
            # It is not taken for silent, nor forgotten: all of it is handled, at the rate.
            for _ in range(40):
                await asyncio.sleep(1)
                raw.stream.write(pack_plain(FrameType.PING, 7))
            answered = [frame.number for frame in raw.frames if frame.type == FrameType.PONG]
            assert 4_000 < len(answered) < 5_000
            assert answered == [number % 1000 for number in range(len(answered))]
            assert bert.lost == [] and raw.ended is None

    run(main())


def test_one_turn_of_the_loop_handles_a_few_frames_of_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw = await raw_link(hub)
        raw.stream.write(b"".join(data(i, whole(STATUS)) for i in range(500)))
        arrived = asyncio.Event()

        def on_message(peer: PeerId, message: Message, payload: memoryview) -> None:
            bert.received.append((peer, 5, 0))
            arrived.set()

        monkeypatch.setattr(bert, "on_message", on_message)
        await arrived.wait()
        turns = [len(bert.received)]
        for _ in range(100):
            await asyncio.sleep(0)
            turns.append(len(bert.received))
        assert turns[-1] == 500
        assert turns[0] <= FRAMES_A_TURN
        assert all(after - before <= FRAMES_A_TURN for before, after in pairwise(turns))

    two_peers(body)
