"""Rate and delay made in the sending process, for machines where no namespaces can be made.

All streams of a process share one `Uplink`: it takes a piece of each stream in turn, as a transport
that multiplexes does, lets it pass at the rate, and hands it to the real stream after the delay.
"""

import asyncio
from collections import deque
from typing import Any

from swarm.spans import PeerId
from swarm.wire.network import ByteStream, StreamReceiver

_PIECE_BYTES = 4096
_STREAM_BUFFER_BYTES = 64 * 1024
"""A stream that has more than this waiting cannot be written to."""


class Uplink:
    """What a process sends through. Everything but the fields is used in the loop's thread."""

    def __init__(self) -> None:
        self.enabled = False
        self.bytes_per_s = float("inf")
        self.delay_s = 0.0
        self.sent_bytes = 0
        self._busy: deque[RelayedStream] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._free_at = 0.0
        """When all that was let through has passed at the rate."""

    def waits(self, stream: "RelayedStream") -> None:
        """The stream has something again."""
        self._busy.append(stream)
        if self._timer is None:
            self._pass()

    def _pass(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._free_at = max(self._free_at, now)
        while self._busy:
            if self._free_at > now:
                self._timer = loop.call_at(self._free_at, self._pass)
                return
            stream = self._busy.popleft()
            piece = stream.take(_PIECE_BYTES)
            self.sent_bytes += len(piece)
            self._free_at += len(piece) / self.bytes_per_s
            loop.call_at(self._free_at + self.delay_s, stream.arrive, piece)
            if stream.waiting:
                self._busy.append(stream)


class RelayedStream:
    """A `ByteStream` whose writes take the uplink's way."""

    def __init__(self, stream: ByteStream, uplink: Uplink) -> None:
        self._stream = stream
        self._uplink = uplink
        self._receiver: StreamReceiver | None = None
        self._pieces: deque[memoryview] = deque()
        self.waiting = 0
        """Bytes that are written and not yet let through."""
        self._under_way = 0
        self._full = False
        self._closing = False

    @property
    def peer(self) -> PeerId:
        return self._stream.peer

    @property
    def address(self) -> str:
        return self._stream.address

    def start(self, receiver: StreamReceiver) -> None:
        self._receiver = receiver
        self._stream.start(self)

    def write(self, *parts: bytes | bytearray | memoryview) -> bool:
        if self._closing:
            return False
        data = b"".join(parts)
        self._pieces.append(memoryview(data))
        idle, self.waiting = not self.waiting, self.waiting + len(data)
        if idle and data:
            self._uplink.waits(self)
        self._full = self.waiting > _STREAM_BUFFER_BYTES
        return not self._full

    def pause_reading(self) -> None:
        self._stream.pause_reading()

    def resume_reading(self) -> None:
        self._stream.resume_reading()

    def close(self) -> None:
        self._closing = True
        self._close_when_done()

    def take(self, most: int) -> memoryview:
        """The next piece, of at most `most` bytes."""
        piece = self._pieces.popleft()
        if len(piece) > most:
            self._pieces.appendleft(piece[most:])
            piece = piece[:most]
        self.waiting -= len(piece)
        self._under_way += 1
        if self._full and self.waiting <= _STREAM_BUFFER_BYTES // 2:
            self._full = False
            if self._receiver is not None and not self._closing:
                asyncio.get_running_loop().call_soon(self._receiver.writable_again)
        return piece

    def arrive(self, piece: memoryview) -> None:
        """The piece has come through."""
        self._under_way -= 1
        self._stream.write(piece)
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._closing and not self.waiting and not self._under_way:
            self._stream.close()

    # ---- StreamReceiver

    def bytes_received(self, data: bytes) -> None:
        if self._receiver is not None and not self._closing:
            self._receiver.bytes_received(data)

    def writable_again(self) -> None:
        """The uplink is the narrow place, not the stream below."""

    def stream_ended(self, reason: str) -> None:
        if self._receiver is not None and not self._closing:
            self._receiver.stream_ended(reason)


class RelayedNetwork:
    """A `Network` whose streams send through an uplink; all else is the real one's."""

    def __init__(self, network: Any, uplink: Uplink) -> None:
        self._network = network
        self._uplink = uplink

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    @property
    def on_stream(self) -> Any:
        return self._on_stream

    @on_stream.setter
    def on_stream(self, handler: Any) -> None:
        self._on_stream = handler
        if handler is None:
            self._network.on_stream = None
        else:
            self._network.on_stream = lambda stream: handler(RelayedStream(stream, self._uplink))

    async def dial(self, peer: PeerId, timeout_s: float) -> RelayedStream:
        return RelayedStream(await self._network.dial(peer, timeout_s), self._uplink)
