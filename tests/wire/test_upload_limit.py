"""A process's limit on what it uploads, over links in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from link_peers import ANNA, BERT, CARL, Peer, request

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Message
from swarm.spans import PeerId
from swarm.wire.memory import MemoryNetworkHub, Path
from swarm.wire.upload_limit import BURST_S, MAX_WAIT_S, UploadLimit
from swarm.wire.virtual_time import run

MBIT = 125_000
"""Bytes."""


class TimedPeer(Peer):
    """Also knows when each message came."""

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        super().on_message(peer, message, payload)
        self.came.append((request(message), asyncio.get_running_loop().time()))

    @property
    def came(self) -> list[tuple[int, float]]:
        return self.__dict__.setdefault("_came", [])


def one_uploads_to_two(
    bytes_per_s: float, body: Callable[[Peer, TimedPeer, TimedPeer], Awaitable[None]]
) -> None:
    """Runs `body` with Anna, whose uploads are limited, linked to Bert and Carl."""

    async def main() -> None:
        hub = MemoryNetworkHub(seed=1, path=Path(delay_s=0.01))
        upload = UploadLimit(bytes_per_s, asyncio.get_running_loop())
        async with (
            Peer(hub, ANNA, upload=upload) as anna,
            TimedPeer(hub, BERT) as bert,
            TimedPeer(hub, CARL) as carl,
        ):
            await anna.links.connect(BERT, 5)
            await anna.links.connect(CARL, 5)
            await body(anna, bert, carl)

    run(main())


def sent(peer: Peer) -> int:
    stats = [peer.links.stats(other) for other in (BERT, CARL)]
    return sum(one.bytes_sent for one in stats if one is not None)


@pytest.mark.parametrize("mbit", [1, 20, 300])
def test_all_links_together_keep_to_the_limit_and_use_it(mbit: int) -> None:
    async def body(anna: Peer, bert: TimedPeer, carl: TimedPeer) -> None:
        seconds = 20.0 if mbit < 100 else 4.0
        size, before = mbit * MBIT, sent(anna)
        for number in range(int(seconds)):  # each link alone would have enough to send
            anna.send(BERT, number, size, ServiceClass.PREFILL)
            anna.send(CARL, 1000 + number, size, ServiceClass.PREFILL)
            await asyncio.sleep(1)
        assert (sent(anna) - before) / seconds == pytest.approx(mbit * MBIT, rel=0.02)
        # Alike, they have shared it.
        assert len(bert.came) == pytest.approx(len(carl.came), abs=1)

    one_uploads_to_two(mbit * MBIT, body)


def test_at_no_time_more_than_a_short_burst_is_sent() -> None:
    async def body(anna: Peer, bert: TimedPeer, carl: TimedPeer) -> None:
        await asyncio.sleep(60)  # idleness earns nothing
        samples = []
        for number in range(100):
            anna.send(BERT, number, 40_000, ServiceClass.PREFILL)
            samples.append((asyncio.get_running_loop().time(), sent(anna)))
            await asyncio.sleep(0.01)
        for index, (began, first) in enumerate(samples):
            for now, count in samples[index:]:
                assert count - first <= (now - began + BURST_S + 0.03) * 8 * MBIT

    one_uploads_to_two(8 * MBIT, body)


def test_decode_waits_for_no_prompt_of_another_link() -> None:
    async def body(anna: Peer, bert: TimedPeer, carl: TimedPeer) -> None:
        for number in range(4):
            anna.send(BERT, 1000 + number, 10 * MBIT, ServiceClass.PREFILL)
            anna.send(CARL, 2000 + number, 10 * MBIT, ServiceClass.PREFILL)
        sent_at = {}
        for number in range(100):
            sent_at[number] = asyncio.get_running_loop().time()
            anna.send(CARL, number, 4096, ServiceClass.DECODE)
            await asyncio.sleep(0.1)
        delays = [when - sent_at[number] for number, when in carl.came if number < 1000]
        assert len(delays) == 100
        # 10 ms of the path, 33 ms for the step itself, 20 ms for the fragment before it.
        assert max(delays) < 0.07
        # What decode leaves over, prompts get.
        assert sent(anna) == pytest.approx(10 * MBIT, rel=0.03)

    one_uploads_to_two(MBIT, body)


def test_a_prompt_still_moves_when_decode_alone_would_fill_the_limit() -> None:
    async def body(anna: Peer, bert: TimedPeer, carl: TimedPeer) -> None:
        anna.send(BERT, 1000, 20_000, ServiceClass.PREFILL)
        for number in range(400):
            anna.send(CARL, number, 16_000, ServiceClass.DECODE)
            await asyncio.sleep(0.1)
        assert [number for number, _ in bert.came] == [1000]
        [(_, when)] = bert.came
        assert when < 10 * MAX_WAIT_S

    one_uploads_to_two(MBIT, body)


def test_who_is_gone_holds_nobody_up() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(seed=1, path=Path(delay_s=0.01))
        upload = UploadLimit(MBIT, asyncio.get_running_loop())
        async with Peer(hub, ANNA, upload=upload) as anna, Peer(hub, CARL) as carl:
            async with Peer(hub, BERT) as bert:
                await anna.links.connect(BERT, 5)
                await anna.links.connect(CARL, 5)
                anna.send(BERT, 1, 10 * MBIT, ServiceClass.DECODE)
                anna.send(CARL, 2, MBIT, ServiceClass.PREFILL)
                await asyncio.sleep(0.5)
                assert carl.numbers() == bert.numbers() == []
                await bert.vanish()
            await asyncio.sleep(1.2)
            assert carl.numbers() == [2]

    run(main())


def test_a_broken_stream_is_resumed_under_the_limit() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(seed=1, path=Path(delay_s=0.01))
        upload = UploadLimit(MBIT, asyncio.get_running_loop())
        async with Peer(hub, ANNA, upload=upload) as anna, Peer(hub, BERT) as bert:
            await anna.links.connect(BERT, 5)
            for number in range(10):
                anna.send(BERT, number, MBIT // 4, ServiceClass.PREFILL, b"one")
            for _ in range(3):
                await asyncio.sleep(0.6)
                hub.reset(ANNA, BERT)
            await asyncio.sleep(5)
            assert bert.numbers() == list(range(10))
            assert anna.lost == bert.lost == []

    run(main())


def test_what_comes_in_is_not_limited() -> None:
    async def body(anna: Peer, bert: TimedPeer, carl: TimedPeer) -> None:
        bert.send(ANNA, 1, 50 * MBIT, ServiceClass.PREFILL)
        await asyncio.sleep(1)
        assert anna.numbers() == [1]

    one_uploads_to_two(MBIT, body)
