"""Streams that peers open to us, until they have said hello."""

import asyncio
import logging
from collections.abc import Callable

from swarm.errors import PeerError
from swarm.spans import PeerId
from swarm.wire.connection import Connection
from swarm.wire.frames import Frame
from swarm.wire.network import ByteStream

logger = logging.getLogger(__name__)

MAX_STREAMS_WITHOUT_HELLO = 4
"""Of one peer; further ones are closed at once."""


class Accepting:
    """Gives each stream so long for its hello, and bounds how many wait for theirs."""

    def __init__(
        self,
        own_id: PeerId,
        hello_timeout_s: float,
        max_streams: int,
        *,
        is_welcome: Callable[[PeerId], bool],
        on_hello: Callable[[Connection, Frame], None],
    ) -> None:
        """`max_streams`: without a hello, of all peers; further ones are closed at once.
        `is_welcome`: whether a peer may open a link at all. `on_hello`: for each connection; it
        calls `greeted`, and may raise FramingError."""
        self._own_id = own_id
        self._hello_timeout_s = hello_timeout_s
        self._max_streams = max_streams
        self._is_welcome = is_welcome
        self._on_hello = on_hello
        self._waiting: dict[Connection, asyncio.TimerHandle] = {}
        """With their deadlines."""

    def accept(self, stream: ByteStream) -> None:
        """Takes a stream, or closes it. In the loop's thread."""
        of_peer = sum(connection.peer == stream.peer for connection in self._waiting)
        full = of_peer >= MAX_STREAMS_WITHOUT_HELLO or len(self._waiting) >= self._max_streams
        if full or stream.peer == self._own_id or not self._is_welcome(stream.peer):
            stream.close()
            return
        loop = asyncio.get_running_loop()
        connection = Connection(
            stream, loop, dialled=False, on_hello=self._on_hello, on_end=self._stream_ended
        )
        self._waiting[connection] = loop.call_later(
            self._hello_timeout_s, self._no_hello, connection
        )
        connection.start()

    def greeted(self, connection: Connection) -> None:
        """Its hello has come; connections that we dialled are not known here."""
        timer = self._waiting.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Closes all that wait."""
        for connection in list(self._waiting):
            self.greeted(connection)
            connection.close()

    def _no_hello(self, connection: Connection) -> None:
        logger.info("%s opened a stream and did not say hello", connection.peer)
        del self._waiting[connection]
        connection.close()

    def _stream_ended(self, connection: Connection, error: PeerError | str) -> None:
        self.greeted(connection)
        if isinstance(error, PeerError):
            logger.warning("%s", error)
