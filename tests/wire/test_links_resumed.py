"""Links outlive their streams and are lost once: resets, partitions, restarts, silence."""

import asyncio

import pytest
from link_peers import ANNA, BERT, CARL, MEGABYTE, Peer, RawStream, raw_link, two_peers

from swarm.errors import PeerTimeoutError, UnreachablePeerError
from swarm.wire.frames import FrameType, Hello, pack_hello, pack_plain
from swarm.wire.inbox import CREDIT_BYTES
from swarm.wire.memory import MemoryNetworkHub, Path
from swarm.wire.virtual_time import run


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
