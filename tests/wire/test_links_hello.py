"""How streams begin: what a hello says, which stream stays, how many may wait for one."""

import asyncio
import logging
from contextlib import AsyncExitStack

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

from swarm.errors import FramingError, ProtocolVersionError, UnreachablePeerError
from swarm.scheduling.client_groups import ClientGroups
from swarm.spans import PeerId
from swarm.wire.frames import (
    PROTOCOL_VERSION,
    FrameType,
    Hello,
    Range,
    pack_hello,
    pack_plain,
    unpack_hello,
)
from swarm.wire.inbox import CREDIT_BYTES
from swarm.wire.memory import MemoryNetworkHub
from swarm.wire.virtual_time import run


def test_another_version_is_refused_on_both_sides(caplog: pytest.LogCaptureFixture) -> None:
    other = pack_hello(Hello(77, 0, 1, True, 0, (), 0), version=7) + b"whatever version 7 says"

    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw = await raw_link(hub, other)
        assert [frame.type for frame in raw.frames] == [FrameType.HELLO]
        assert raw.ended is not None
        assert bert.links.peers() == []
        assert bert.lost == []

    with caplog.at_level(logging.WARNING):
        two_peers(body)
    assert len(caplog.records) == 1
    assert "version 7" in caplog.text and f"we speak {PROTOCOL_VERSION}" in caplog.text

    async def dialling(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        carl = hub.network(CARL)

        def answer(stream: object) -> None:
            RawStream(stream).stream.write(other)  # type: ignore[arg-type]

        carl.on_stream = answer
        with pytest.raises(ProtocolVersionError, match=r"version 7 .* we speak \d"):
            await anna.links.connect(CARL, timeout_s=5)
        await carl.close()

    two_peers(dialling)


@pytest.mark.parametrize(
    "answer",
    [
        pack_hello(Hello(77, 0, 2, True, 0, (), CREDIT_BYTES)),
        pack_hello(Hello(77, 0, 2**60, True, 0, (), CREDIT_BYTES)),
        pack_plain(FrameType.PONG),
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


def test_links_beyond_the_limit_are_turned_away_at_once_and_told_so() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        async with Peer(hub, BERT, max_links=1) as bert, Peer(hub, ANNA) as anna:
            await anna.links.connect(BERT, timeout_s=5)
            async with Peer(hub, CARL) as carl:
                began = asyncio.get_running_loop().time()
                with pytest.raises(UnreachablePeerError, match="takes no further link") as raised:
                    await carl.links.connect(BERT, timeout_s=5)
                assert asyncio.get_running_loop().time() - began < 0.1
                assert raised.value.peer == BERT
                assert bert.links.peers() == [ANNA]
                await anna.links.close()
                await asyncio.sleep(0.1)
                await carl.links.connect(BERT, timeout_s=5)

    run(main())


def test_a_crowd_behind_one_prefix_leaves_links_for_others() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        async with AsyncExitStack() as stack:
            groups = ClientGroups(["198.51.100.0/24"])
            bert = await stack.enter_async_context(
                Peer(hub, BERT, max_links=8, groups=groups, grace_s=0.5)
            )

            async def come(name: str, address: str) -> bool:
                hub.set_address(PeerId(name), address)
                peer = await stack.enter_async_context(Peer(hub, PeerId(name), listens=False))
                try:
                    await peer.links.connect(BERT, timeout_s=5)
                except UnreachablePeerError:
                    return False
                return True

            crowd = [await come(f"crowd-{n}", f"/ip4/192.0.2.{n}/tcp/1") for n in range(12)]
            assert crowd == [True] * 2 + [False] * 10
            assert await come("honest-1", "/ip4/203.0.113.1/tcp/1")
            assert await come("honest-2", "/ip6/2001:db8::1/tcp/1")
            assert not await come("crowd-12", "/ip4/192.0.2.99/tcp/1")
            # Named by the operator, they need not leave any.
            friends = [await come(f"friend-{n}", "/ip4/198.51.100.1/tcp/1") for n in range(6)]
            assert friends == [True] * 4 + [False] * 2
            hub.vanish(PeerId("crowd-0"))
            await asyncio.sleep(2)
            assert await come("honest-3", "/ip4/203.0.114.1/tcp/1")
            assert len(bert.links.peers()) == 8

    run(main())


def test_streams_without_hello_are_limited_over_all_peers_and_sooner_of_one_prefix() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        async with Peer(hub, BERT, max_streams_without_hello=5):
            ends = []
            for number, prefix in enumerate("aaabbcde", start=1):
                network = hub.network(PeerId(str(number)))
                hub.set_address(network.peer_id, f"/ip4/192.0.{ord(prefix)}.{number}/tcp/1")
                ends.append(RawStream(await network.dial(BERT, 5)))
            await asyncio.sleep(1)
            taken = [number for number, end in enumerate(ends, start=1) if end.ended is None]
            assert taken == [1, 2, 4, 6, 7]

    run(main())
