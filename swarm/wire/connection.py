"""One raw stream of a link: reads frames from it and remembers who dialled it."""

import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Protocol

from swarm.errors import FramingError, PeerError
from swarm.spans import PeerId
from swarm.wire.frames import Frame, FrameReader
from swarm.wire.network import ByteStream

logger = logging.getLogger(__name__)


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
        self.dialled = dialled
        self.number = 0
        """Which stream of the pair it is; set when it is known."""
        self.link: FrameReceiver | None = None
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

    def start(self) -> None:
        self._stream.start(self)

    def write(self, data: bytes) -> None:
        self.bytes_sent_total += len(data)
        self.writable = self._stream.write(data)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.writable = False
            self._stream.close()

    # ---- StreamReceiver

    def bytes_received(self, data: bytes) -> None:
        if self.closed:
            return
        self.last_received = self._loop.time()
        self.bytes_received_total += len(data)
        try:
            for frame in self._reader.feed(data):
                if self.link is not None:
                    self.link.frame(frame)
                else:
                    self._on_hello(self, frame)
                if self.closed:
                    return
        except FramingError as error:
            self._fail(error)
        except Exception:
            logger.exception("a frame of %s could not be handled; its link is closed", self.peer)
            self._fail(FramingError("a frame could not be handled", peer=self.peer))

    def writable_again(self) -> None:
        self.writable = not self.closed
        if self.link is not None:
            self.link.writable_again()

    def stream_ended(self, reason: str) -> None:
        if self.closed:
            return
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
