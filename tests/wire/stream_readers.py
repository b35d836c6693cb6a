"""Ends of the real network's streams: one that keeps what comes, one that sends it back."""

import asyncio
from collections.abc import Callable

from libp2p_peers import Peers

from swarm.wire.libp2p import Libp2pNetwork
from swarm.wire.network import ByteStream


class Reader:
    """Keeps what a stream brings."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.data = bytearray()
        self.ended: str | None = None
        self.writable = asyncio.Event()
        self._changed = asyncio.Event()
        stream.start(self)

    def bytes_received(self, data: bytes) -> None:
        assert self.ended is None
        self.data += data
        self._changed.set()

    def writable_again(self) -> None:
        self.writable.set()

    def stream_ended(self, reason: str) -> None:
        assert self.ended is None
        self.ended = reason
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def read(self, size: int) -> bytes:
        await self.until(lambda: len(self.data) >= size)
        return bytes(self.data)


class Echo(Reader):
    """Sends back what comes."""

    def bytes_received(self, data: bytes) -> None:
        self.stream.write(data)


async def start_echo(started: Peers) -> Libp2pNetwork:
    network = await started.start()
    network.on_stream = Echo
    return network
