"""Streams in memory that are granted bytes as go-yamux 5.1 grants them, with what it keeps back."""

import asyncio
from collections import deque
from collections.abc import Callable

from swarm.spans import PeerId
from swarm.wire.memory import MemoryNetwork
from swarm.wire.memory_stream import MemoryStream
from swarm.wire.network import ByteStream, StreamReceiver

FIRST_GRANT = 256 * 1024
MAX_GRANT = 16 * 1024 * 1024
_WRITE_BUFFER_BYTES = 64 * 1024


class GrantedStream:
    """A `ByteStream` over another one. Both ends know the round trip; grants come back in half."""

    def __init__(self, stream: MemoryStream, ends: "Ends", rtt_s: float) -> None:
        self._stream = stream
        self._ends = ends
        self._rtt_s = rtt_s
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._may_send = FIRST_GRANT
        self._window = self._open = FIRST_GRANT
        self._epoch = self._loop.time()
        self._full = False
        self.receiver: StreamReceiver | None = None
        ends[stream] = self

    @property
    def peer(self) -> PeerId:
        return self._stream.peer

    @property
    def address(self) -> str:
        return self._stream.address

    def start(self, receiver: StreamReceiver) -> None:
        self.receiver = receiver
        self._stream.start(self)

    def write(self, *parts: bytes | bytearray | memoryview) -> bool:
        for part in parts:
            self._waiting.append(memoryview(bytes(part)))
            self._waiting_bytes += len(part)
        self._send()
        self._full = self._waiting_bytes > _WRITE_BUFFER_BYTES
        return not self._full

    def pause_reading(self) -> None:
        self._stream.pause_reading()

    def resume_reading(self) -> None:
        self._stream.resume_reading()

    def close(self) -> None:
        self._stream.close()

    def _send(self) -> None:
        while self._waiting and self._may_send:
            piece = self._waiting.popleft()
            if len(piece) > self._may_send:
                self._waiting.appendleft(piece[self._may_send :])
                piece = piece[: self._may_send]
            self._may_send -= len(piece)
            self._waiting_bytes -= len(piece)
            self._stream.write(piece)

    def granted(self, size: int) -> None:
        self._may_send += size
        self._send()
        if self._full and self._waiting_bytes <= _WRITE_BUFFER_BYTES:
            self._full = False
            if self.receiver is not None:
                self.receiver.writable_again()

    # ---- as the receiver of the stream below

    def bytes_received(self, data: bytes) -> None:
        assert self.receiver is not None
        self._open -= len(data)
        self.receiver.bytes_received(data)
        owed = self._window - self._open
        if owed < self._window // 2:
            return
        self._open += owed
        now = self._loop.time()
        if now - self._epoch < 4 * self._rtt_s and self._window < MAX_GRANT:
            self._window *= 2
            owed = self._window - self._open  # and what was owed before is forgotten
            self._open += owed
        self._epoch = now
        sender = self._ends[self._stream.other]
        self._loop.call_later(self._rtt_s / 2, sender.granted, owed)

    def writable_again(self) -> None: ...

    def stream_ended(self, reason: str) -> None:
        assert self.receiver is not None
        self.receiver.stream_ended(reason)


Ends = dict[MemoryStream, GrantedStream]
"""By the streams below them."""


class GrantedNetwork:
    """A `Network` whose streams are such, on both ends."""

    def __init__(self, network: MemoryNetwork, ends: Ends, rtt_s: float) -> None:
        """`ends`: of all networks of the hub."""
        self._network = network
        self._ends = ends
        self._rtt_s = rtt_s
        self._on_stream: Callable[[ByteStream], None] | None = None

    @property
    def peer_id(self) -> PeerId:
        return self._network.peer_id

    @property
    def addresses(self) -> list[str]:
        return self._network.addresses

    @property
    def on_stream(self) -> Callable[[ByteStream], None] | None:
        return self._on_stream

    @on_stream.setter
    def on_stream(self, taker: Callable[[ByteStream], None] | None) -> None:
        self._on_stream = taker
        self._network.on_stream = None if taker is None else lambda s: taker(self._granted(s))

    def _granted(self, stream: ByteStream) -> GrantedStream:
        assert isinstance(stream, MemoryStream)
        return GrantedStream(stream, self._ends, self._rtt_s)

    async def dial(self, peer: PeerId, timeout_s: float) -> ByteStream:
        return self._granted(await self._network.dial(peer, timeout_s))

    async def close(self) -> None:
        await self._network.close()
