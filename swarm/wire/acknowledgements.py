"""When a link says what it has received."""

import asyncio
from collections.abc import Callable

from swarm.scheduling.link_window import MAX_FRAGMENT_BYTES

ACK_DELAY_S = 0.05
ACK_BYTES = 16 * 1024
"""So many bytes of decode steps are acknowledged at once, too."""
SPACING_S = 0.001
"""While no decode comes in, two acknowledgements are so far apart, or `SPACING_BYTES`: on a fast
path one for each fragment costs nearly as much as the fragment, in both daemons, too."""
SPACING_BYTES = 256 * 1024
LONG_SPACING_S = 0.004
"""The same for a sender of fragments of more than `MAX_FRAGMENT_BYTES`: it sends no decode, keeps
10 ms in flight, and each answer is work for it, too."""
LONG_SPACING_BYTES = 1024 * 1024


class Acknowledgements:
    """Decode steps are acknowledged by the next DATA frame, or after `ACK_DELAY_S`. All else is
    acknowledged at once, once for all that a turn of the loop brings, or that the spacing brings:
    the sender keeps only so much in flight (beside decode less than it sends in that time), and
    learns its rate from what comes back.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[], bool]) -> None:
        """`send` writes an ACK frame, which says all that there is to say; False: not now, and
        `try_again` follows."""
        self._loop = loop
        self._send = send
        self._owed = False
        self._bytes = 0
        """Came since the last ACK."""
        self._at_once = False
        """The number of bytes is owed, which only an ACK frame says."""
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        """May be a timer."""
        self._waits = False
        """Whether it is."""
        self._sent_at = 0.0

    def owe(self, size: int, *, at_once: bool, hurry: bool) -> None:
        """So many bytes came. `hurry`: without any spacing."""
        self._owed = True
        self._bytes += size
        if at_once or self._bytes >= ACK_BYTES:
            self._at_once = True
            long = size > MAX_FRAGMENT_BYTES
            spacing_bytes = LONG_SPACING_BYTES if long else SPACING_BYTES
            if self._soon is None:
                spacing_s = LONG_SPACING_S if long else SPACING_S
                wait_s = self._sent_at + spacing_s - self._loop.time()
                self._waits = wait_s > 0 and not hurry and self._bytes < spacing_bytes
                if self._waits:
                    self._soon = self._loop.call_later(wait_s, self._now)
                else:
                    self._soon = self._loop.call_soon(self._now)
            elif self._waits and (hurry or self._bytes >= spacing_bytes):
                self._soon.cancel()
                self._waits = False
                self._soon = self._loop.call_soon(self._now)
        elif self._timer is None:
            self._timer = self._loop.call_later(ACK_DELAY_S, self._late)

    def data_written(self, *, says_all: bool) -> None:
        """A DATA frame went out; it says all about messages unless there are gaps between them."""
        if says_all:
            self._owed = self._at_once

    def try_again(self) -> None:
        """The stream is writable again."""
        if self._at_once:
            self._now()

    def stop(self) -> None:
        """The stream is over."""
        if self._timer is not None:
            self._timer.cancel()
        if self._soon is not None:
            self._soon.cancel()
        self._timer = self._soon = None
        self._clear()

    def _now(self) -> None:
        self._soon = None
        if self._owed and self._send():
            self._clear()

    def _late(self) -> None:
        self._timer = None
        if self._owed:
            if self._send():
                self._clear()
            else:
                self._timer = self._loop.call_later(ACK_DELAY_S, self._late)

    def _clear(self) -> None:
        self._owed = self._at_once = False
        self._bytes = 0
        self._sent_at = self._loop.time()
