"""The lanes of a link: several raw streams that carry its frames in turn, as if they were one.

libp2p's multiplexer (yamux, as of go-yamux 5.1) grants a stream 256 KiB ahead, and more when that
proves too little; but each time it grants more, it keeps back what it owed by then. So a stream
never has more than 128 KiB of its grant left when the next part comes, a round trip late where that
is not enough: a path of 100 Mbit/s and 50 ms stands still for 40 ms after every 2 MiB, and decode
with it. Over several streams each has less than that in flight, and none stands still.

Who writes fills a lane up to `TURN_BYTES` and goes on with the next; who reads counts along, so
that the order of the frames is the one in which they were written, and nothing need be said.
"""

import asyncio
from collections.abc import Sequence

from swarm.errors import FramingError
from swarm.wire.connection import Connection, FrameReceiver
from swarm.wire.frames import Frame, FrameType, pack_plain
from swarm.wire.outgoing_message import Buffer

LANES = 16
"""Of a link that is spread: with 128 KiB each, what 100 Mbit/s bring in 160 ms."""
TURN_BYTES = 16 * 1024
"""With so much, headers included, a lane's turn is over; the last frame goes on it as a whole."""
GOODBYE_S = 1.0
"""So long after the end of one lane what came on the others is still read."""


class Turns:
    """Whose turn it is in one direction; both ends reckon alike. Pure."""

    def __init__(self) -> None:
        self.is_spread = False
        self.lane = 0
        self._bytes = 0

    def spread(self) -> None:
        """The next frame goes over the second lane, and so on in turn."""
        self.is_spread, self.lane, self._bytes = True, 1, 0

    def took(self, size: int) -> bool:
        """A frame of so many bytes went over the present lane. Whether its turn is over."""
        self._bytes += size
        if not self.is_spread or self._bytes < TURN_BYTES:
            return False
        self.lane = (self.lane + 1) % LANES
        self._bytes = 0
        return True


class Lanes:
    """The streams beside the connection `first`, and whose turn it is to be written and read.

    Until it is spread in a direction, that direction's frames all go over `first`.
    """

    def __init__(self, first: Connection, link: FrameReceiver) -> None:
        self.first = first
        self._link = link
        self._connections: list[Connection | None] = [None] * LANES
        self._connections[0] = first
        self._out = Turns()
        self._in = Turns()
        first.lanes = self

    def add(self, lane: int, connection: Connection) -> None:
        """A stream has been opened, and greeted on. Raises FramingError."""
        if not 0 < lane < LANES or self._connections[lane] is not None:
            raise FramingError(f"lane {lane} of {LANES}, which cannot be or is there already")
        self._connections[lane] = connection
        connection.link = connection.lanes = self
        connection.hold()

    @property
    def complete(self) -> bool:
        return None not in self._connections

    # ---- writing

    @property
    def used(self) -> int:
        """Over how many of them frames are written."""
        return LANES if self._out.is_spread else 1

    @property
    def writable(self) -> bool:
        return self._lane(self._out).writable_here

    def spread(self) -> None:
        """What is written from now on goes over all lanes; all must be there."""
        self.first.write(pack_plain(FrameType.SPREAD))
        self._out.spread()

    def write(self, parts: Sequence[Buffer], size: int) -> None:
        """One frame, of `size` bytes."""
        self._lane(self._out).write_here(parts)
        self._out.took(size)

    # ---- reading

    @property
    def reading(self) -> Connection:
        """Where the next frame comes from, or the present one came from."""
        return self._lane(self._in)

    def peer_spreads(self) -> None:
        """The peer has said SPREAD, so we do, too. Raises FramingError."""
        if self._in.is_spread:
            raise FramingError("a second SPREAD")
        self._in.spread()
        self.first.hold()
        self.reading.release()
        if not self._out.is_spread:
            self.spread()

    def handled(self, connection: Connection, size: int) -> None:
        """A frame of `size` bytes that came on `connection` has been handled."""
        if self._in.took(size):
            connection.hold()
            self.reading.release(connection.take_pause())

    # ---- the end

    def ended_ahead(self, reason: str) -> None:
        """A stream is gone before its turn: at the end of all, if there is a goodbye to be read on
        another one."""
        if self._is_used:
            loop = asyncio.get_running_loop()
            loop.call_later(GOODBYE_S, self._link.broken, self.first, reason)
        else:
            self.abandon()

    def abandon(self) -> None:
        """The link stays with its first stream."""
        if self.first.lanes is self:
            self.first.lanes = None
        self.close()

    def close(self) -> None:
        """The further streams."""
        for connection in self._connections[1:]:
            if connection is not None:
                connection.close()

    # ---- what further streams tell: it is the link's

    def frame(self, frame: Frame) -> None:
        self._link.frame(frame)

    def writable_again(self) -> None:
        if self.writable:
            self._link.writable_again()

    def broken(self, connection: Connection, reason: str) -> None:
        if self._is_used:
            self._link.broken(self.first, reason)
        else:
            self.abandon()

    def failed(self, error: FramingError) -> None:
        self._link.failed(error)

    # ---- inside

    @property
    def _is_used(self) -> bool:
        return self._out.is_spread or self._in.is_spread

    def _lane(self, turns: Turns) -> Connection:
        connection = self._connections[turns.lane]
        assert connection is not None, "spread before all lanes were there"
        return connection
