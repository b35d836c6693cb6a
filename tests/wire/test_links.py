"""Links over the in-memory network in virtual time: each promise of the link, one by one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from link_peers import ANNA, BERT, CARL, Peer, RawStream

from swarm.errors import (
    FramingError,
    LinkFullError,
    PeerTimeoutError,
    ProtocolVersionError,
    UnreachablePeerError,
)
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Message, StatusRequest, encode
from swarm.spans import PeerId
from swarm.wire.connection import FRAMES_A_TURN
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
    unpack_hello,
)
from swarm.wire.inbox import CREDIT_BYTES
from swarm.wire.link import UNFINISHED_S
from swarm.wire.memory import MemoryNetwork, MemoryNetworkHub, Path
from swarm.wire.virtual_time import run

MEGABYTE = 1_000_000
HELLO = pack_hello(Hello(77, 0, 1, True, 0, (), CREDIT_BYTES))


def two_peers(
    body: Callable[[MemoryNetworkHub, Peer, Peer], Awaitable[None]],
    path: Path | None = None,
) -> None:
    """Runs `body` with two peers, and checks that nothing of them is left afterwards."""

    async def main() -> None:
        hub = MemoryNetworkHub(seed=1, path=path or Path(delay_s=0.01))
        async with Peer(hub, ANNA) as anna, Peer(hub, BERT) as bert:
            await body(hub, anna, bert)
        assert hub.streams(ANNA, BERT) == hub.streams(BERT, ANNA) == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


def test_messages_both_ways() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, timeout_s=5)
        assert anna.links.peers() == [BERT]
        anna.send(BERT, 1, 4096)
        bert.send(ANNA, 2, 300_000)
        await asyncio.sleep(0.1)
        assert bert.received == [(ANNA, 1, 4096)]
        assert anna.received == [(BERT, 2, 300_000)]
        stats = anna.links.stats(BERT)
        assert stats is not None
        assert stats.rtt_s == pytest.approx(0.02)
        assert stats.streams == 1
        assert stats.outstanding_bytes == 0

    two_peers(body)


def test_sending_dials_and_goodbye_is_told_once() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        anna.send(BERT, 1)
        assert anna.links.peers() == []
        await asyncio.sleep(0.1)
        assert bert.numbers() == [1]
        await bert.links.close()
        await asyncio.sleep(0.1)
        assert anna.lost == [(BERT, "the peer closed the link")]
        assert bert.lost == []
        assert anna.links.stats(BERT) is None

    two_peers(body)


def test_what_waits_is_written_before_goodbye() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, timeout_s=5)
        for number in range(20):
            anna.send(BERT, number, 50_000)
        await anna.links.close()
        await asyncio.sleep(1)
        assert bert.numbers() == list(range(20))

    two_peers(body, Path(delay_s=0.01, bandwidth_bytes_per_s=10 * MEGABYTE))


def test_decode_overtakes_a_bulk_message_on_its_way() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, timeout_s=5)
        anna.send(BERT, 1, 4 * MEGABYTE, ServiceClass.BULK, b"bulk")
        await asyncio.sleep(1)
        anna.send(BERT, 2, 4096, ServiceClass.DECODE, b"chat")
        await asyncio.sleep(0.3)
        assert bert.numbers() == [2]
        await asyncio.sleep(4)
        assert bert.numbers() == [2, 1]

    two_peers(body, Path(bandwidth_bytes_per_s=MEGABYTE, buffer_bytes=64 * 1024))


def test_a_session_keeps_its_order_across_classes() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, timeout_s=5)
        anna.send(BERT, 1, MEGABYTE, ServiceClass.PREFILL, b"one")
        anna.send(BERT, 2, 4096, ServiceClass.DECODE, b"one")
        anna.send(BERT, 3, 4096, ServiceClass.DECODE, b"two")
        await asyncio.sleep(3)
        assert bert.numbers() == [3, 1, 2]

    two_peers(body, Path(bandwidth_bytes_per_s=MEGABYTE, buffer_bytes=64 * 1024))


def test_simultaneous_dials_end_with_one_stream() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await asyncio.gather(anna.links.connect(BERT, 5), bert.links.connect(ANNA, 5))
        for number in range(10):
            anna.send(BERT, number, 1000)
            bert.send(ANNA, number, 1000)
        await asyncio.sleep(1)
        assert anna.numbers() == bert.numbers() == list(range(10))
        assert hub.streams(ANNA, BERT) == 1
        assert anna.lost == bert.lost == []

    two_peers(body)


def test_a_reset_is_not_noticed_by_the_user() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, timeout_s=5)
        for number in range(40):
            anna.send(BERT, number, 20_000, session=b"one")
            bert.send(ANNA, number, 20_000, session=b"one")
            await asyncio.sleep(0.02)
            if number % 10 == 5:
                hub.reset(ANNA, BERT)
        await asyncio.sleep(3)
        assert anna.numbers() == bert.numbers() == list(range(40))
        assert anna.lost == bert.lost == []

    two_peers(body, Path(delay_s=0.03, bandwidth_bytes_per_s=MEGABYTE))


def test_a_partition_shorter_than_the_grace_is_resumed() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, timeout_s=5)
        hub.partition(ANNA, BERT)
        anna.send(BERT, 1)
        await asyncio.sleep(9)
        assert anna.links.peers() == []
        anna.send(BERT, 2)
        hub.heal(ANNA, BERT)
        await asyncio.sleep(3)
        assert bert.numbers() == [1, 2]
        assert anna.lost == bert.lost == []

    two_peers(body)


def test_a_longer_partition_loses_the_link_on_both_sides_once() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, timeout_s=5)
        hub.partition(ANNA, BERT)
        anna.send(BERT, 1)
        await asyncio.sleep(20)
        assert [peer for peer, _ in anna.lost] == [BERT]
        assert [peer for peer, _ in bert.lost] == [ANNA]
        assert "was not restored within 10 s" in anna.lost[0][1]
        hub.heal(ANNA, BERT)
        await asyncio.sleep(1)
        anna.send(BERT, 2)
        await asyncio.sleep(1)
        assert bert.numbers() == [2]
        assert len(anna.lost) == len(bert.lost) == 1

    two_peers(body)


def test_one_side_forgets_and_the_other_learns_it() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        async with Peer(hub, ANNA, grace_s=2) as anna, Peer(hub, BERT, grace_s=60) as bert:
            await anna.links.connect(BERT, timeout_s=5)
            hub.partition(ANNA, BERT)
            bert.send(ANNA, 1)
            await asyncio.sleep(8)
            assert [peer for peer, _ in anna.lost] == [BERT]
            assert bert.lost == []
            hub.heal(ANNA, BERT)
            await asyncio.sleep(8)
            assert [peer for peer, _ in bert.lost] == [ANNA]
            bert.send(ANNA, 2)
            anna.send(BERT, 3)
            await asyncio.sleep(1)
            assert (anna.numbers(), bert.numbers()) == ([2], [3])
            assert len(anna.lost) == len(bert.lost) == 1

    run(main())


def test_a_restarted_peer_is_a_new_one() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(path=Path(delay_s=0.01))
        async with Peer(hub, ANNA) as anna:
            first = Peer(hub, BERT)
            async with first:
                await anna.links.connect(BERT, timeout_s=5)
                for number in range(5):
                    anna.send(BERT, number)
                await asyncio.sleep(0.1)
                await first.vanish()
            anna.send(BERT, 5)
            async with Peer(hub, BERT) as second:
                await second.links.connect(ANNA, timeout_s=5)
                await asyncio.sleep(1)
                assert len(anna.lost) == 1
                assert "restarted" in anna.lost[0][1]
                assert second.numbers() == []
                anna.send(BERT, 6)
                second.send(ANNA, 7)
                await asyncio.sleep(1)
                assert (anna.numbers(), second.numbers()) == ([7], [6])
                assert second.lost == []
                assert len(anna.lost) == 1

    run(main())


def test_nobody_there() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        with pytest.raises(UnreachablePeerError, match=CARL):
            await anna.links.connect(CARL, timeout_s=5)
        anna.send(CARL, 1)
        await asyncio.sleep(1)
        assert [peer for peer, _ in anna.lost] == [CARL]
        with pytest.raises(UnreachablePeerError, match="this very peer"):
            await anna.links.connect(ANNA, timeout_s=5)
        assert anna.links.stats(CARL) is None

    two_peers(body)


def test_a_frozen_peer_does_not_answer_in_time() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        carl = hub.network(CARL)
        opened: list[RawStream] = []
        carl.on_stream = lambda stream: opened.append(RawStream(stream))
        with pytest.raises(PeerTimeoutError, match=CARL):
            await anna.links.connect(CARL, timeout_s=3)
        await asyncio.sleep(5)
        assert anna.lost == []
        assert all(stream.ended for stream in opened)
        await carl.close()

    two_peers(body)


def test_a_client_is_never_dialled() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(path=Path(delay_s=0.01))
        async with Peer(hub, ANNA) as server:
            async with Peer(hub, BERT, listens=False) as client:
                await client.links.connect(ANNA, timeout_s=5)
                server.send(BERT, 1)
                await asyncio.sleep(0.1)
                hub.reset(ANNA, BERT)
                server.send(BERT, 2)
                await asyncio.sleep(1)
                assert client.numbers() == [1, 2]
            await asyncio.sleep(1)
            assert [peer for peer, _ in server.lost] == [BERT]
            with pytest.raises(UnreachablePeerError, match="only the client"):
                server.send(BERT, 3)

    run(main())


def test_a_peer_that_does_not_read_costs_bounded_memory() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(path=Path(delay_s=0.01, buffer_bytes=64 * 1024))
        limit = 2 * MEGABYTE
        async with Peer(hub, ANNA, max_outstanding_bytes=limit) as anna, Peer(hub, BERT) as bert:
            await anna.links.connect(BERT, timeout_s=5)
            hub.stall(ANNA, BERT)
            with pytest.raises(LinkFullError, match=BERT):
                for number in range(1000):
                    anna.send(BERT, number, 10_000)
            stats = anna.links.stats(BERT)
            assert stats is not None
            assert limit - 20_000 < stats.outstanding_bytes <= limit
            assert stats.bytes_sent < 300_000
            hub.heal(ANNA, BERT)
            await asyncio.sleep(1)
            assert bert.numbers() == list(range(len(bert.received)))
            assert len(bert.received) > 170
            anna.send(BERT, 1000)
            await asyncio.sleep(1)
            assert bert.numbers()[-1] == 1000

    run(main())


def test_two_peers_that_flood_each_other_go_on() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, timeout_s=5)
        for number in range(60):
            anna.send(BERT, number, MEGABYTE, ServiceClass.BULK)
            bert.send(ANNA, number, MEGABYTE, ServiceClass.PREFILL)
        await asyncio.sleep(20)
        assert anna.numbers() == bert.numbers() == list(range(60))
        assert anna.lost == bert.lost == []

    two_peers(body, Path(delay_s=0.05, bandwidth_bytes_per_s=10 * MEGABYTE))


def test_a_message_that_is_too_long_is_refused_here() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        with pytest.raises(LinkFullError, match="in parts"):
            anna.send(BERT, 1, MAX_MESSAGE_BYTES)

    two_peers(body)


def test_a_handler_that_fails_does_not_hurt_the_link(caplog: pytest.LogCaptureFixture) -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, timeout_s=5)
        anna.links.send(BERT, StatusRequest(1), [b"not what the test expects"])
        anna.send(BERT, 2)
        await asyncio.sleep(1)
        assert bert.numbers() == [2]

    two_peers(body)
    assert "was not handled" in caplog.text


# ---- hostile peers


async def raw_link(hub: MemoryNetworkHub, hello: bytes = HELLO) -> RawStream:
    """A hand-driven peer, dialled to BERT, after both hellos."""
    return await raw_stream(hub.network(CARL), hello)


async def raw_stream(network: MemoryNetwork, hello: bytes) -> RawStream:
    raw = RawStream(await network.dial(BERT, 5))
    raw.stream.write(hello)
    await asyncio.sleep(0.1)
    return raw


def data(number: int, body: bytes, flags: int = 3, service_class: int = 1) -> bytes:
    return HEADER.pack(FrameType.DATA, service_class, flags, len(body), number, 0, 0) + body


def whole(message: bytes, payload: bytes = b"") -> bytes:
    return PRELUDE.pack(len(message) + len(payload), len(message)) + message + payload


STATUS = encode(StatusRequest(5))


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


def test_a_silent_peer_is_pinged_and_then_dropped() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw = await raw_link(hub, pack_hello(Hello(77, 0, 1, False, 0, (), CREDIT_BYTES)))
        await asyncio.sleep(3)
        pings = [frame.number for frame in raw.frames if frame.type == FrameType.PING]
        assert len(pings) == 4
        assert bert.links.peers() == [CARL]
        raw.stream.write(pack_plain(FrameType.PONG, pings[-1]))
        await asyncio.sleep(3)
        assert bert.links.peers() == [CARL]
        await asyncio.sleep(1)
        assert raw.ended is not None
        assert bert.links.peers() == []
        await asyncio.sleep(11)
        assert [peer for peer, _ in bert.lost] == [CARL]
        assert "silent for" in bert.lost[0][1]

    two_peers(body)


def test_one_slow_ping_at_the_start_does_not_count() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        hub.stall(BERT, ANNA)
        connecting = asyncio.create_task(anna.links.connect(BERT, timeout_s=5))
        await asyncio.sleep(0.5)
        hub.heal(ANNA, BERT)
        await connecting
        await asyncio.sleep(0.2)
        for peer, other in ((anna, BERT), (bert, ANNA)):
            stats = peer.links.stats(other)
            assert stats is not None
            assert stats.rtt_s == stats.min_rtt_s == pytest.approx(0.02)

    two_peers(body)


def test_closing_does_not_wait_for_the_dead() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        await anna.links.connect(BERT, timeout_s=5)
        hub.partition(ANNA, BERT)
        anna.send(BERT, 1, 10 * MEGABYTE)
        waiting = asyncio.create_task(anna.links.connect(CARL, timeout_s=60))
        hub.network(CARL).on_stream = lambda stream: None
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        await anna.links.close()
        assert asyncio.get_running_loop().time() - began <= 2
        with pytest.raises(UnreachablePeerError):
            await waiting
        with pytest.raises(UnreachablePeerError, match="closed"):
            anna.send(BERT, 2)

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


def test_what_came_before_the_end_of_the_stream_is_handled() -> None:
    async def body(hub: MemoryNetworkHub, anna: Peer, bert: Peer) -> None:
        raw = await raw_link(hub)
        raw.stream.write(b"".join(data(i, whole(STATUS)) for i in range(500)))
        raw.stream.write(pack_plain(FrameType.BYE))
        raw.stream.close()
        await asyncio.sleep(1)
        assert len(bert.received) == 500
        assert [peer for peer, _ in bert.lost] == [CARL]

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
