"""Lanes over the real network: as many streams of the daemon, in order, and after its death."""

import asyncio
import os

import pytest
from libp2p_peers import peers, run_in_peace

from swarm.scheduling import link_window
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Message, StatusRequest
from swarm.spans import PeerId
from swarm.wire.lanes import LANES
from swarm.wire.libp2p import Libp2pNetwork
from swarm.wire.links import Links

MESSAGES, SIZE = 24, 300_000


class Reader:
    """Keeps what comes, in the order in which it comes."""

    def __init__(self, network: Libp2pNetwork) -> None:
        self.links = Links(network, self, grace_s=60.0)  # a busy machine's daemon starts slowly
        self.came: list[tuple[int, bytes]] = []
        self._news = asyncio.Event()

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        assert isinstance(message, StatusRequest)
        self.came.append((message.request, bytes(payload)))
        self._news.set()

    def on_link_lost(self, peer: PeerId, reason: str) -> None:
        raise AssertionError(reason)

    async def has(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.came) < count:
                self._news.clear()
                await self._news.wait()

    def lanes(self, peer: PeerId) -> int:
        stats = self.links.stats(peer)
        return 0 if stats is None else stats.lanes


@pytest.mark.parametrize("client_sends", [True, False])
def test_messages_over_lanes(client_sends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_window, "MAX_STREAM_BYTES", 1)
    monkeypatch.setattr(link_window, "MIN_LONG_RTT_S", 0.0)
    sent = [(number, os.urandom(SIZE)) for number in range(MESSAGES)]

    async def main() -> None:
        async with peers() as started:
            server = await started.start()
            client = await started.start(initial_peers=server.addresses, client_only=True)
            here, there = Reader(client), Reader(server)
            await here.links.start()
            await there.links.start()
            await here.links.connect(server.peer_id, 10)
            writer, reader = (here, there) if client_sends else (there, here)
            to = server.peer_id if client_sends else client.peer_id

            def send(part: list[tuple[int, bytes]]) -> None:
                for number, payload in part:
                    message = StatusRequest(number)
                    writer.links.send(to, message, [payload], ServiceClass.PREFILL, b"session")

            send(sent[:12])
            await reader.has(12)
            for _ in range(1000):
                if here.lanes(server.peer_id) == there.lanes(client.peer_id) == LANES:
                    break
                await asyncio.sleep(0.02)
            assert here.lanes(server.peer_id) == there.lanes(client.peer_id) == LANES
            send(sent[12:18])
            server_link = there.links.stats(client.peer_id)
            assert server_link is not None and server_link.streams == 1
            daemon = client.daemon_pid
            assert daemon is not None
            os.kill(daemon, 9)
            send(sent[18:])
            await reader.has(MESSAGES)
            assert reader.came == sent
            await here.links.close()
            await there.links.close()

    run_in_peace(main())
