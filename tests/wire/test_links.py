"""What links carry in virtual time: both ways, in order, by urgency, and within bounds."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from link_peers import ANNA, BERT, CARL, MEGABYTE, STATUS, Peer, data, raw_link, two_peers, whole

from swarm.errors import LinkFullError
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import StatusRequest
from swarm.spans import PeerId
from swarm.wire.frames import MAX_MESSAGE_BYTES, FrameType, pack_plain
from swarm.wire.memory import MemoryNetworkHub, Path
from swarm.wire.virtual_time import run


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


def test_many_peers_that_do_not_read_cost_bounded_memory_together() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(path=Path(buffer_bytes=64 * 1024))
        limit, slow = MEGABYTE, [PeerId(f"slow-{number}") for number in range(8)]
        async with AsyncExitStack() as stack:
            anna = await stack.enter_async_context(
                Peer(hub, ANNA, memory_bytes=limit, max_links=16, grace_s=1.0)
            )
            for peer_id in (*slow, BERT, CARL):
                peer = await stack.enter_async_context(Peer(hub, peer_id))
                await anna.links.connect(peer_id, timeout_s=5)
                if peer_id == BERT:
                    bert = peer
                elif peer_id in slow:
                    hub.stall(ANNA, peer_id)

            def fill(peer_id: PeerId) -> int:
                """How many messages of 10 kB wait for it; until it may have no more."""
                with pytest.raises(LinkFullError, match=peer_id):
                    for number in range(1000):
                        anna.send(peer_id, number, 10_000, ServiceClass.PREFILL)
                stats = anna.links.stats(peer_id)
                assert stats is not None
                return stats.outstanding_bytes

            held = [fill(peer_id) for peer_id in slow]
            assert held[0] > 0.9 * limit
            assert sum(held[:3]) > 1.7 * limit
            assert min(held) > 40_000
            assert sum(held) <= 3 * limit
            anna.send(BERT, 1, 50_000, ServiceClass.PREFILL)
            await asyncio.sleep(1)
            assert bert.numbers() == [1]
            for peer_id in slow:
                hub.vanish(peer_id)
            await asyncio.sleep(3)
            assert {peer for peer, _ in anna.lost} == set(slow)
            hub.stall(ANNA, CARL)
            assert fill(CARL) > 0.9 * limit

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
