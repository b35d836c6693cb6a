"""Streams that peers open to us, until they have said hello."""

import asyncio
import logging
from collections.abc import Callable

from swarm.errors import PeerError
from swarm.scheduling.client_groups import ClientGroups
from swarm.spans import PeerId
from swarm.wire.connection import Connection
from swarm.wire.frames import Frame
from swarm.wire.network import ByteStream
from swarm.wire.places import Places
from swarm.wire.refusals import turn_away

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
        groups: ClientGroups,
        *,
        is_welcome: Callable[[PeerId, str], bool],
        on_hello: Callable[[Connection, Frame], None],
    ) -> None:
        """`max_streams`: without a hello, of all peers; further ones are closed at once, and of one
        of the `groups` sooner. `is_welcome`: whether a peer, at this address, may open a link at
        all; others are told. `on_hello`: for each connection; it calls `greeted`, and may raise
        FramingError."""
        self._own_id = own_id
        self._hello_timeout_s = hello_timeout_s
        self._groups = groups
        self._places: Places[Connection] = Places(max_streams)
        self._is_welcome = is_welcome
        self._on_hello = on_hello
        self._waiting: dict[Connection, asyncio.TimerHandle] = {}
        """With their deadlines."""

    def accept(self, stream: ByteStream) -> None:
        """Takes a stream, or closes it. In the loop's thread."""
        peer = stream.peer
        if not self._is_welcome(peer, stream.address):
            turn_away(stream)
            return
        of_peer = sum(connection.peer == peer for connection in self._waiting)
        group = self._groups.group_at(peer, stream.address)
        full = of_peer >= MAX_STREAMS_WITHOUT_HELLO or not self._places.has_room(group)
        if full or peer == self._own_id:
            stream.close()
            return
        loop = asyncio.get_running_loop()
        connection = Connection(
            stream, loop, dialled=False, on_hello=self._on_hello, on_end=self._stream_ended
        )
        self._waiting[connection] = loop.call_later(
            self._hello_timeout_s, self._no_hello, connection
        )
        self._places.take(connection, group)
        connection.start()

    def greeted(self, connection: Connection) -> None:
        """Its hello has come, or will not; connections that we dialled are not known here."""
        timer = self._waiting.pop(connection, None)
        if timer is not None:
            timer.cancel()
            self._places.give_back(connection)

    def close(self) -> None:
        """Closes all that wait."""
        for connection in list(self._waiting):
            self.greeted(connection)
            connection.close()

    def _no_hello(self, connection: Connection) -> None:
        logger.info("%s opened a stream and did not say hello", connection.peer)
        self.greeted(connection)
        connection.close()

    def _stream_ended(self, connection: Connection, error: PeerError | str) -> None:
        self.greeted(connection)
        if isinstance(error, PeerError):
            logger.warning("%s", error)
