"""How streams begin: what a hello says, which stream stays, how many may wait for one."""

import asyncio
import logging

import pytest
from link_peers import (
    ANNA,
    BERT,
    CARL,
    HELLO,
    STATUS,
    Peer,
    RawStream,
    data,
    raw_link,
    raw_stream,
    two_peers,
    whole,
)

from swarm.errors import FramingError, ProtocolVersionError
from swarm.spans import PeerId
from swarm.wire.frames import FrameType, Hello, Range, pack_hello, pack_plain, unpack_hello
from swarm.wire.inbox import CREDIT_BYTES
from swarm.wire.memory import MemoryNetworkHub
from swarm.wire.virtual_time import run


def test_another_version_is_refused_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    other = pack_hello(Hello(77, 0, 1, True, 0, (), 0), version=2) + b"whatever version 2 says"

    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw = await raw_link(hub, other)
        assert [frame.type for frame in raw.frames] == [FrameType.HELLO]
        assert raw.ended is not None
        assert bert.links.peers() == []
        assert bert.lost == []

    with caplog.at_level(logging.WARNING):
        two_peers(body)
    assert len(caplog.records) == 1
    assert "version 2" in caplog.text and "we speak 1" in caplog.text

    async def dialling(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        carl = hub.network(CARL)

        def answer(stream: object) -> None:
            RawStream(stream).stream.write(other)  # type: ignore[arg-type]

        carl.on_stream = answer
        with pytest.raises(ProtocolVersionError, match=r"version 2 .* we speak 1"):
            await anna.links.connect(CARL, timeout_s=5)
        await carl.close()

    two_peers(dialling)


@pytest.mark.parametrize(
    "answer",
    [
        pack_hello(Hello(77, 0, 2, True, 0, (), CREDIT_BYTES)),
        pack_hello(Hello(77, 0, 2**60, True, 0, (), CREDIT_BYTES)),
        pack_plain(FrameType.BYE),
        b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100),
    ],
)
def test_a_dialled_peer_that_answers_junk_is_a_framing_error(answer: bytes) -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        carl = hub.network(CARL)
        carl.on_stream = lambda stream: RawStream(stream).stream.write(answer) and None
        with pytest.raises(FramingError, match=CARL):
            await anna.links.connect(CARL, timeout_s=5)
        assert anna.links.stats(CARL) is None
        assert anna.lost == []
        await carl.close()

    two_peers(body)


def test_streams_without_hello_are_closed() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        carl = hub.network(CARL)
        raws = [RawStream(await carl.dial(BERT, 5)) for _ in range(5)]
        await asyncio.sleep(0.1)
        assert [raw.ended is not None for raw in raws] == [False] * 4 + [True]
        await asyncio.sleep(6)
        assert all(raw.ended is not None for raw in raws)
        junk = RawStream(await carl.dial(BERT, 5))
        junk.stream.write(pack_plain(FrameType.PING))
        await asyncio.sleep(0.1)
        assert junk.ended is not None
        assert bert.lost == []

    two_peers(body)


def test_a_hello_says_what_was_delivered() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        carl = hub.network(CARL)
        raw = await raw_stream(carl, HELLO)
        first = unpack_hello(raw.frames[0])
        assert (first.remembers, first.acknowledged, first.delivered) == (77, 0, ())
        message = whole(STATUS)
        raw.stream.write(data(0, message) + data(1, message) + data(5, message))
        bert.send(CARL, 1)
        await asyncio.sleep(0.01)
        raw.stream.close()
        await asyncio.sleep(0.01)
        hello = Hello(77, first.incarnation, 2, True, 0, (), CREDIT_BYTES)
        again = await raw_stream(carl, pack_hello(hello))
        second = unpack_hello(again.frames[0])
        assert second.incarnation == first.incarnation
        assert (second.acknowledged, second.delivered) == (2, (Range(5, 6),))
        resent = [frame.number for frame in again.frames if frame.type == FrameType.DATA]
        assert resent == [0]
        hello = Hello(77, first.incarnation, 3, True, 1, (), CREDIT_BYTES)
        last = await raw_stream(carl, pack_hello(hello))
        assert again.ended is not None
        assert [frame for frame in last.frames if frame.type == FrameType.DATA] == []
        assert bert.lost == []

    two_peers(body)


def test_an_older_stream_does_not_replace_a_newer_one() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        carl = hub.network(CARL)
        newer = await raw_stream(carl, pack_hello(Hello(77, 0, 5, True, 0, (), CREDIT_BYTES)))
        older = await raw_stream(carl, pack_hello(Hello(77, 0, 4, True, 0, (), CREDIT_BYTES)))
        assert older.ended is not None
        assert newer.ended is None
        assert bert.links.peers() == [CARL]

    two_peers(body)


def test_another_incarnation_loses_the_link_once() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        carl = hub.network(CARL)
        await raw_stream(carl, HELLO)
        bert.send(CARL, 1)
        again = await raw_stream(carl, pack_hello(Hello(78, 0, 1, True, 0, (), CREDIT_BYTES)))
        assert [peer for peer, _ in bert.lost] == [CARL]
        assert [frame for frame in again.frames if frame.type == FrameType.DATA] == []
        bert.send(CARL, 2)
        await asyncio.sleep(0.1)
        sent = [frame.number for frame in again.frames if frame.type == FrameType.DATA]
        assert sent == [0]

    two_peers(body)


def test_links_beyond_the_limit_are_turned_away() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        async with Peer(hub, BERT, max_links=1) as bert, Peer(hub, ANNA) as anna:
            await anna.links.connect(BERT, timeout_s=5)
            raw = RawStream(await hub.network(CARL).dial(BERT, 5))
            raw.stream.write(HELLO)
            await asyncio.sleep(1)
            assert raw.ended is not None
            assert bert.links.peers() == [ANNA]

    run(main())


def test_streams_without_hello_are_limited_over_all_peers() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        async with Peer(hub, BERT, max_streams_without_hello=3):
            ends = []
            for name in "12345":
                network = hub.network(PeerId(name))
                ends.append(RawStream(await network.dial(BERT, 5)))
            await asyncio.sleep(1)
            assert [end.ended is None for end in ends] == [True] * 3 + [False] * 2

    run(main())
