"""One raw stream of a link: reads frames from it and remembers who dialled it."""

import logging
from asyncio import AbstractEventLoop, Handle
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from swarm.errors import FramingError, PeerError
from swarm.spans import PeerId
from swarm.wire.frames import HEADER, Frame, FrameReader, FrameType, pack_plain
from swarm.wire.network import ByteStream
from swarm.wire.outgoing_message import Buffer
from swarm.wire.upload_limit import UploadLimit

if TYPE_CHECKING:
    from swarm.wire.lanes import Lanes

logger = logging.getLogger(__name__)

FRAMES_A_TURN = 64
SECONDS_A_TURN = 0.005
"""A turn of the event loop handles no more frames of one stream than these say."""
MAX_AHEAD_BYTES = 64 * 1024
"""With more than this received and not handled, the stream is not read any further."""
_ABOUT_LANES = frozenset((FrameType.WIDEN, FrameType.SPREAD))


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
        self.lanes: Lanes | None = None
        """This stream and those beside it, when there are any."""
        self.on_widen: Callable[[], None] | None = None
        """Called when lanes are wanted on a stream that we dialled."""
        self.upload: UploadLimit | None = None
        """What is written is charged here."""
        self.closed = False
        self.bytes_received_total = 0
        self.bytes_sent_total = 0
        self._loop = loop
        self.last_received = loop.time()
        self._writable = True
        self._stream = stream
        self._reader = FrameReader()
        self._on_hello = on_hello
        self._on_end = on_end
        self._frames: Sequence[Frame] = ()
        """Received, but left for a later turn; `_chunks` came after them."""
        self._chunks: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._reads = True
        self._held = False
        """What comes is for later: it is another lane's turn."""
        self._wants_lanes = self._peer_wants_lanes = False
        self._pause_s = 0.0
        self._turn: Handle | None = None
        """The later turn, if there is to be one."""
        self._ended: str | None = None
        """The stream is over, but not all that it brought is handled."""

    def start(self) -> None:
        self._stream.start(self)

    @property
    def writable(self) -> bool:
        """Whether the next frame should be written now."""
        return self._writable if self.lanes is None else self.lanes.writable

    def write(self, *parts: Buffer) -> None:
        """Sends all of `parts`, in order: one frame, or several without lanes."""
        size = sum(map(len, parts))
        self.bytes_sent_total += size
        if self.upload is not None:
            self.upload.spent(size)
        if self.lanes is None:
            self.write_here(parts)
        else:
            self.lanes.write(parts, size)

    def write_here(self, parts: Sequence[Buffer]) -> None:
        """On this very stream."""
        self._writable = self._stream.write(*parts)

    @property
    def writable_here(self) -> bool:
        return self._writable

    @property
    def lanes_used(self) -> int:
        """Over how many streams frames are written."""
        return 1 if self.lanes is None else self.lanes.used

    def ask_for_lanes(self) -> None:
        """The link needs several streams. Who has dialled this one opens the others."""
        if self._wants_lanes:
            return
        self._wants_lanes = True
        if not self.dialled:
            self.write(pack_plain(FrameType.WIDEN))
        elif self.on_widen is not None:
            self.on_widen()

    def close(self) -> None:
        """And the lanes beside it."""
        if not self.closed:
            self.closed = True
            self._writable = False
            self._stream.close()
            if self.lanes is not None:
                self.lanes.close()
            if self._turn is not None:
                self._turn.cancel()
                self._turn = None
            self._frames = ()
            self._chunks.clear()

    @property
    def _first(self) -> "Connection":
        """What tells of all lanes."""
        return self if self.lanes is None else self.lanes.first

    def pause(self, seconds: float) -> None:
        """What comes after the frame that is being handled waits for so long."""
        handling = self if self.lanes is None else self.lanes.reading
        handling._pause_s = seconds

    def hold(self) -> None:
        """What comes after the frame that is being handled waits until `release`."""
        self._held = True

    def release(self, delay_s: float = 0.0) -> None:
        """What has come and what comes is handled, but not from within this call."""
        self._held = False
        if not self.closed and self._turn is None:
            self._turn = self._loop.call_later(delay_s, self._next_turn)

    def take_pause(self) -> float:
        """The seconds that `pause` was told, for whoever else has the next turn."""
        pause_s, self._pause_s = self._pause_s, 0.0
        return pause_s

    # ---- StreamReceiver

    def bytes_received(self, data: bytes) -> None:
        if self.closed:
            return
        self._first.last_received = self._loop.time()
        self._first.bytes_received_total += len(data)
        if self._turn is None and not self._held:
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
        elif self._held:
            pass
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
                if frame.type in _ABOUT_LANES:
                    self._about_lanes(frame.type)
                else:
                    self.link.frame(frame)
                if self.lanes is not None and not self._held:
                    self.lanes.handled(self, HEADER.size + len(frame.body))
            else:
                self._on_hello(self, frame)
            handled += 1
            if self.closed or self._held or self._pause_s or handled == FRAMES_A_TURN:
                break
            if self._loop.time() > ends_at:
                break
        return handled

    def _about_lanes(self, kind: int) -> None:
        """Raises FramingError."""
        if kind == FrameType.SPREAD:
            if self.lanes is not None and self.lanes.complete:
                self.lanes.peer_spreads()
            else:
                self._end("a lane of the link has ended")
        elif not self.dialled or self._peer_wants_lanes:
            raise FramingError("a second WIDEN, or one for a stream of its own")
        else:
            self._peer_wants_lanes = True
            self.ask_for_lanes()

    def _next_turn(self) -> None:
        self._turn = None
        if not self._reads:
            # It cannot be heard meanwhile, but it has said more than enough.
            self._first.last_received = self._loop.time()
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
        self._writable = not self.closed
        if self.link is not None:
            self.link.writable_again()

    def stream_ended(self, reason: str) -> None:
        if self.closed:
            return
        if self._turn is not None or self._held:
            self._writable = False
            self._ended = reason
            if self._held and self.lanes is not None:
                self.lanes.ended_ahead(reason)
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
