"""One raw stream of a link: reads frames from it and remembers who dialled it."""

import logging
from asyncio import AbstractEventLoop, Handle
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from swarm.errors import FramingError, PeerError
from swarm.spans import PeerId
from swarm.wire.frames import Frame, FrameReader
from swarm.wire.network import ByteStream
from swarm.wire.outgoing_message import Buffer
from swarm.wire.upload_limit import UploadLimit

logger = logging.getLogger(__name__)

FRAMES_A_TURN = 64
SECONDS_A_TURN = 0.005
"""A turn of the event loop handles no more frames of one stream than these say."""
MAX_AHEAD_BYTES = 64 * 1024
"""With more than this received and not handled, the stream is not read any further."""


class FrameReceiver(Protocol):
    """What a connection needs of the link that it belongs to."""

    def frame(self, frame: Frame) -> None:
        """Raises FramingError for a frame that must not be."""

    def writable_again(self) -> None: ...

    def broken(self, connection: "Connection", reason: str) -> None: ...

    def failed(self, error: FramingError) -> None: ...


class Connection:
    """A `StreamReceiver`: first the hello goes to `on_hello`, then all frames to `link`.

    `on_hello(connection, frame)` sets `link`, or closes the connection; it may raise FramingError.
    `on_end(connection, error)` is called once if the stream ends before a link has it.
    """

    def __init__(
        self,
        stream: ByteStream,
        loop: AbstractEventLoop,
        *,
        dialled: bool,
        on_hello: Callable[["Connection", Frame], None],
        on_end: Callable[["Connection", PeerError | str], None],
    ) -> None:
        self.peer: PeerId = stream.peer
        self.address = stream.address
        self.dialled = dialled
        self.number = 0
        """Which stream of the pair it is; set when it is known."""
        self.link: FrameReceiver | None = None
        self.upload: UploadLimit | None = None
        """What is written is charged here."""
        self.writable = True
        self.closed = False
        self.bytes_received_total = 0
        self.bytes_sent_total = 0
        self._loop = loop
        self.last_received = loop.time()
        self._stream = stream
        self._reader = FrameReader()
        self._on_hello = on_hello
        self._on_end = on_end
        self._frames: Sequence[Frame] = ()
        """Received, but left for a later turn; `_chunks` came after them."""
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._reads = True
        self._pause_s = 0.0
        self._turn: Handle | None = None
        """The later turn, if there is to be one."""
        self._ended: str | None = None
        """The stream is over, but not all that it brought is handled."""

    def start(self) -> None:
        self._stream.start(self)

    def write(self, *parts: Buffer) -> None:
        """Sends all of `parts`, in order."""
        size = sum(map(len, parts))
        self.bytes_sent_total += size
        if self.upload is not None:
            self.upload.spent(size)
        self.writable = self._stream.write(*parts)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.writable = False
            self._stream.close()
            if self._turn is not None:
                self._turn.cancel()
                self._turn = None
            self._frames = ()
            self._chunks.clear()

    def pause(self, seconds: float) -> None:
        """What comes after the frame that is being handled waits for so long."""
        self._pause_s = seconds

    # ---- StreamReceiver

    def bytes_received(self, data: bytes) -> None:
        if self.closed:
            return
        self.last_received = self._loop.time()
        self.bytes_received_total += len(data)
        if self._turn is None:
            self._handle(data)
            return
        self._chunks.append(data)
        self._waiting_bytes += len(data)
        if self._reads and self._waiting_bytes > MAX_AHEAD_BYTES:
            self._reads = False
            self._stream.pause_reading()

    def _handle(self, data: bytes | None) -> None:
        """Handles `data`, or without it the frames that are left, as far as one turn may go."""
        try:
            frames = self._frames if data is None else self._reader.feed(data)
            self._frames = frames[self._handle_frames(frames) :]
        except FramingError as error:
            self._fail(error)
        except Exception:
            logger.exception("a frame of %s could not be handled; its link is closed", self.peer)
            self._fail(FramingError("a frame could not be handled", peer=self.peer))
        if self.closed:
            self._frames = ()
        elif self._pause_s:
            self._turn = self._loop.call_later(self._pause_s, self._next_turn)
            self._pause_s = 0.0
        elif self._frames or self._chunks:
            self._turn = self._loop.call_soon(self._next_turn)
        elif self._ended is not None:
            self._end(self._ended)

    def _handle_frames(self, frames: Sequence[Frame]) -> int:
        """How many of them it has handled."""
        ends_at = self._loop.time() + SECONDS_A_TURN
        handled = 0
        for frame in frames:
            if self.link is not None:
                self.link.frame(frame)
            else:
                self._on_hello(self, frame)
            handled += 1
            if self.closed or self._pause_s or handled == FRAMES_A_TURN:
                break
            if self._loop.time() > ends_at:
                break
        return handled

    def _next_turn(self) -> None:
        self._turn = None
        if not self._reads:
            # It cannot be heard meanwhile, but it has said more than enough.
            self.last_received = self._loop.time()
        if self._frames or not self._chunks:
            self._handle(None)
        else:
            data = self._chunks.popleft()
            self._waiting_bytes -= len(data)
            self._handle(data)
        if not self._reads and self._waiting_bytes <= MAX_AHEAD_BYTES:
            self._reads = True
            self._stream.resume_reading()

    def writable_again(self) -> None:
        self.writable = not self.closed
        if self.link is not None:
            self.link.writable_again()

    def stream_ended(self, reason: str) -> None:
        if self.closed:
            return
        if self._turn is not None:
            self.writable = False
            self._ended = reason
            return
        self._end(reason)

    def _end(self, reason: str) -> None:
        self.close()
        if self.link is not None:
            self.link.broken(self, reason)
        else:
            self._on_end(self, reason)

    def _fail(self, error: FramingError) -> None:
        named = FramingError(f"{self.peer} sent {error}; its link is closed", peer=self.peer)
        self.close()
        if self.link is not None:
            self.link.failed(named)
        else:
            self._on_end(self, named)
