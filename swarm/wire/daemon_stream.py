"""One stream through the libp2p daemon: a Unix socket that first carries one protobuf message.

The daemon's protocol: whoever opens a stream connects to the daemon's socket, writes a request and
reads a response; for a stream that a peer opened the daemon connects to our socket and writes who
it is. Messages have a varint length before them. After that the socket carries the raw bytes.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from swarm.spans import PeerId
from swarm.wire.network import StreamReceiver
from swarm.wire.socket_writer import SocketWriter

MAX_PRELUDE_BYTES = 1 << 16
CLOSE_GRACE_S = 1.0
_WRITE_BUFFER_BYTES = 64 * 1024
"""With more than this written and not sent, a stream cannot be written to."""


def with_length(message: bytes) -> bytes:
    """`message` as the daemon's protocol frames it: its length as a varint, then its bytes."""
    length, prefix = len(message), bytearray()
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + message


def split_message(data: bytes | bytearray) -> tuple[bytes, bytes] | None:
    """`(the first message, what follows it)`, or None when it is not whole yet.

    Raises ValueError when it would be longer than `MAX_PRELUDE_BYTES`.
    """
    length = 0
    for index, byte in enumerate(data[:4]):
        length |= (byte & 0x7F) << (7 * index)
        if length > MAX_PRELUDE_BYTES:
            raise ValueError(f"a message of {length} bytes from the libp2p daemon")
        if byte < 0x80:
            start, end = index + 1, index + 1 + length
            return (bytes(data[start:end]), bytes(data[end:])) if len(data) >= end else None
    if len(data) >= 4:
        raise ValueError("a message of more than 2 MiB from the libp2p daemon")
    return None


class DaemonStream(asyncio.Protocol):
    """A `ByteStream` through our daemon."""

    def __init__(
        self,
        on_prelude: Callable[["DaemonStream", bytes | None], None],
        on_gone: Callable[["DaemonStream"], None],
    ) -> None:
        """`on_prelude`: called once with the first message, or None if the socket ended before it;
        `on_gone`: called once when the socket is closed."""
        self._on_prelude: Callable[[DaemonStream, bytes | None], None] | None = on_prelude
        self._on_gone = on_gone
        self._early = bytearray()
        self._receiver: StreamReceiver | None = None
        self._transport: asyncio.Transport | None = None
        self._writer: SocketWriter | None = None
        self._writable = True
        self._paused = False
        self._ended: str | None = None
        self._closed = False
        self._abort: asyncio.TimerHandle | None = None
        self._peer: PeerId | None = None
        self.address = ""

    # ---- ByteStream

    @property
    def peer(self) -> PeerId:
        assert self._peer is not None, "the daemon has not said yet who the peer is"
        return self._peer

    def start(self, receiver: StreamReceiver) -> None:
        self._receiver = receiver
        asyncio.get_running_loop().call_soon(self._deliver_early)

    def write(self, *parts: bytes | bytearray | memoryview) -> bool:
        if self._closed or self._ended is not None or self._writer is None:
            return False
        self._writer.write(parts)
        self._writable = self._writer.waiting_bytes <= _WRITE_BUFFER_BYTES
        return self._writable

    def pause_reading(self) -> None:
        self._paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if self._transport is not None and not self._closed and not self._early:
            self._transport.resume_reading()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        transport = self._transport
        if transport is None or self._writer is None or self._ended is not None:
            return
        # The daemon closes its side when it has passed on what came before our end.
        if not transport.is_closing():
            transport.resume_reading()
            self._writer.hand_over()
            transport.write_eof()
        self._abort = asyncio.get_running_loop().call_later(CLOSE_GRACE_S, transport.abort)

    # ---- for the network

    def identify_peer(self, peer: PeerId, address: str) -> None:
        """Called once, from `on_prelude`, when the daemon has said who is at the other end."""
        self._peer = peer
        self.address = address

    def abort(self) -> None:
        """Closes at once, whatever was written before."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def break_off(self, reason: str) -> None:
        """Ends the stream at once, and tells whoever reads it."""
        self._ended = self._ended or reason
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._writer = SocketWriter(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        if self._receiver is not None and not self._early:
            self._receiver.bytes_received(data)
            return
        self._early += data
        if self._on_prelude is not None:
            self._read_prelude()
        elif self._transport is not None:
            self._transport.pause_reading()  # until `start` has handed over what is here

    def pause_writing(self) -> None:
        assert self._writer is not None
        self._writer.blocked()

    def resume_writing(self) -> None:
        assert self._writer is not None
        self._writer.free_again()
        if self._writable or self._writer.waiting_bytes > _WRITE_BUFFER_BYTES:
            return
        self._writable = True
        if self._receiver is not None and not self._closed and self._ended is None:
            self._receiver.writable_again()

    def eof_received(self) -> bool:
        return False  # closes the socket: a stream that is closed on one side is of no use

    def connection_lost(self, error: Exception | None) -> None:
        if self._abort is not None:
            self._abort.cancel()
        if self._writer is not None:
            self._writer.clear()
        if self._ended is None:
            self._ended = f"the stream broke: {error}" if error else "the peer closed the stream"
        self._on_gone(self)
        if self._on_prelude is not None:
            on_prelude, self._on_prelude = self._on_prelude, None
            on_prelude(self, None)
        elif self._receiver is not None and not self._early:
            self._tell_end()

    # ---- inside

    def _read_prelude(self) -> None:
        assert self._on_prelude is not None
        try:
            split = split_message(self._early)
        except ValueError:
            self.abort()
            return
        if split is not None:
            on_prelude, self._on_prelude = self._on_prelude, None
            self._early = bytearray(split[1])
            on_prelude(self, split[0])

    def _deliver_early(self) -> None:
        assert self._receiver is not None
        if self._closed:
            return
        if self._early:
            early, self._early = bytes(self._early), bytearray()
            self._receiver.bytes_received(early)
        if self._ended is not None:
            self._tell_end()
        elif not self._paused:
            self.resume_reading()

    def _tell_end(self) -> None:
        if not self._closed and self._receiver is not None and self._ended is not None:
            self._closed = True
            self._receiver.stream_ended(self._ended)
