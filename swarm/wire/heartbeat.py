"""Whether the peer behind a connection still lives, and how far away it is."""

import asyncio
from collections.abc import Callable

from swarm.wire.connection import Connection
from swarm.wire.frames import FrameType, pack_plain

PING_INTERVAL_S = 1.0
MISSED_PINGS = 3
SILENCE_S = (MISSED_PINGS + 0.5) * PING_INTERVAL_S
RTT_INTERVAL_S = 5.0
"""A busy link is pinged so often, to measure its round trip."""
FIRST_SAMPLES = 4
"""So many pings follow each other on a new connection, and the shortest counts: the first ones may
wait for the stream to be set up below us, and routes are chosen by what they say."""


class Heartbeat:
    """Pings when nothing comes, and calls `on_silence` when the pings are not answered either."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_silence: Callable[[Connection, str], None]
    ) -> None:
        self.rtt_s: float | None = None
        """Smoothed."""
        self.min_rtt_s: float | None = None
        self._loop = loop
        self._on_silence = on_silence
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0
        self._sent_at: float | None = None
        self._asked_at: float | None = None
        """When the first ping went out after which nothing has come yet."""
        self._measured_at = 0.0
        self._samples = 0
        """Round trips measured on this connection."""

    def start(self, connection: Connection) -> None:
        """The first ping goes out at once."""
        self._samples = 0
        self._ping(connection)
        self._timer = self._loop.call_later(PING_INTERVAL_S, self._tick, connection)

    def stop(self) -> None:
        self._sent_at = self._asked_at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def unanswered_s(self, connection: Connection) -> float:
        """How long a ping has waited while nothing at all came; 0 if none does."""
        if self._asked_at is None or connection.last_received >= self._asked_at:
            return 0.0
        return self._loop.time() - self._asked_at

    def answered(self, connection: Connection, number: int) -> float | None:
        """A pong came; the round trip in seconds, if it answers our latest ping."""
        if number != self._number or self._sent_at is None:
            return None
        now = self._loop.time()
        rtt_s, self._sent_at, self._measured_at = now - self._sent_at, None, now
        self._samples += 1
        if self._samples == 1 or self.rtt_s is None or self.min_rtt_s is None:
            self.rtt_s = self.min_rtt_s = rtt_s
        elif self._samples <= FIRST_SAMPLES:
            self.rtt_s = self.min_rtt_s = min(self.min_rtt_s, rtt_s)
        else:
            self.rtt_s = 0.75 * self.rtt_s + 0.25 * rtt_s
            self.min_rtt_s = min(self.min_rtt_s, rtt_s)
        if self._samples < FIRST_SAMPLES:
            self._ping(connection)
        return rtt_s

    def _tick(self, connection: Connection) -> None:
        now = self._loop.time()
        silence_s = now - connection.last_received
        if silence_s > SILENCE_S:
            self._timer = None
            self._on_silence(connection, f"silent for {silence_s:.1f} s")
            return
        self._timer = self._loop.call_later(PING_INTERVAL_S, self._tick, connection)
        measure = connection.writable and now - self._measured_at >= RTT_INTERVAL_S
        if measure or silence_s >= 0.9 * PING_INTERVAL_S:
            self._ping(connection)

    def _ping(self, connection: Connection) -> None:
        self._number += 1
        self._sent_at = now = self._loop.time()
        if self._asked_at is None or connection.last_received >= self._asked_at:
            self._asked_at = now
        connection.write(pack_plain(FrameType.PING, self._number))
