"""Decode alone would fill a link: what prompts get of it then, in virtual time."""

import asyncio
from functools import partial
from itertools import pairwise

import pytest
from link_peers import ANNA, BERT, Peer, content, request

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.fair_queue import FairQueue, Policy
from swarm.sessions.messages import Message, StatusRequest
from swarm.spans import PeerId
from swarm.wire.memory import MemoryNetworkHub, Path
from swarm.wire.virtual_time import run

DECODE, PREFILL = ServiceClass.DECODE, ServiceClass.PREFILL
RATE = 625_000.0
DECODE_BYTES, CHUNK_BYTES = 16_000, 2_000
CHUNKS_FROM = 10_000
DECODE_FRAGMENTS_S = 0.1
"""Some fragments of decode at this rate, each of which goes as a whole."""


class Clocked(Peer):
    """Remembers when each message came."""

    def __init__(self, hub: MemoryNetworkHub, name: PeerId) -> None:
        super().__init__(hub, name)
        self.came: list[tuple[float, Message]] = []

    async def __aenter__(self) -> "Clocked":
        await self.links.start()
        return self

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        self.came.append((asyncio.get_running_loop().time(), message))


def saturated(monkeypatch: pytest.MonkeyPatch, policy: Policy) -> tuple[list[float], float]:
    """When chunks came, while decode waited all the time; and the part of the bytes that they had
    of the last ten seconds."""
    monkeypatch.setattr("swarm.wire.outbox.FairQueue", partial(FairQueue, policy))

    async def main() -> tuple[list[float], float]:
        hub = MemoryNetworkHub(0, Path(delay_s=0.01, bandwidth_bytes_per_s=RATE))
        async with (
            Peer(hub, ANNA, max_outstanding_bytes=64 << 20) as anna,
            Clocked(hub, BERT) as bert,
        ):
            await anna.links.connect(BERT, 5.0)
            decode, chunk = content(1, DECODE_BYTES), content(2, CHUNK_BYTES)
            for number in range(1250):  # 32 s of the line
                session = b"decode-%d" % (number % 40)
                anna.links.send(BERT, StatusRequest(number), [decode], DECODE, session)
            for number in range(3000):
                message = StatusRequest(CHUNKS_FROM + number)
                anna.links.send(BERT, message, [chunk], PREFILL, b"prompt-%d" % (number % 4))
            await asyncio.sleep(5)
            before = len(bert.came)
            await asyncio.sleep(10)
            numbers = [(when, request(message)) for when, message in bert.came[before:]]
            chunks = [when for when, number in numbers if number >= CHUNKS_FROM]
            decoded = len(numbers) - len(chunks)
            total = decoded * DECODE_BYTES + len(chunks) * CHUNK_BYTES
            assert total > 0.97 * 10 * RATE, "the line is full"
            assert decoded > 0
            stats = anna.links.stats(BERT)
            assert stats is not None
            assert stats.min_rtt_s is not None
            assert stats.min_rtt_s < 0.03, "decode's own queue is no part of the round trip"
            return chunks, len(chunks) * CHUNK_BYTES / total

    return run(main())


def test_a_chunk_waits_no_longer_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, _ = saturated(monkeypatch, Policy(shares={}, longest_wait_s=1.0))
    waits = [after - before for before, after in pairwise(chunks)]
    assert len(waits) >= 6
    assert 0.5 < max(waits) <= 1.0 + DECODE_FRAGMENTS_S


def test_prompts_get_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    _, share = saturated(monkeypatch, Policy(longest_wait_s=None))
    assert share == pytest.approx(0.25, abs=0.03)


def test_without_share_and_bound_they_starve(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks, _ = saturated(monkeypatch, Policy(shares={}, longest_wait_s=None))
    assert not chunks
