"""How fast a process may upload over all its links together, the most urgent first."""

import asyncio
from typing import Protocol

from swarm.scheduling.classes import ServiceClass
from swarm.wire.frames import HEADER, MAX_BODY_BYTES

BURST_S = 0.05
"""After a pause so many seconds' worth may go at once, which makes up for late timers."""
FRAGMENT_S = 0.02
"""A fragment is short enough to be out in this time: the next decode step waits no longer."""
MIN_FRAGMENT_BYTES = 1024
MAX_WAIT_S = 2.0
"""Who has waited longer goes next, whatever else is urgent: prompts still move."""


class Sender(Protocol):
    """A link, as the limit sees it."""

    @property
    def next_class(self) -> ServiceClass | None:
        """Of the fragment that it would send now; None if it has none."""

    def flush(self) -> None:
        """Sends as much as it may, asking `UploadLimit.allows` before each fragment; nothing if it
        has no stream any more."""


class UploadLimit:
    """One budget of bytes a second for all links of a process.

    A link asks `allows` before each fragment, and tells `spent` what it has written, control frames
    and fragments alike. Who has to wait stands in line, and its `flush` is called when it may
    send: the line is by class, within a class by arrival, and one fragment is sent at a time. So
    no link's prompt keeps another link's decode step waiting for more than a fragment.

    Counted are the bytes that links write, with their frame headers. Not counted are what TCP/IP
    and encryption add below (52 bytes for each 1,448 and more), and the directory's messages.
    """

    def __init__(self, bytes_per_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.bytes_per_s = bytes_per_s
        fragment = int(bytes_per_s * FRAGMENT_S) - HEADER.size
        self.fragment_bytes = max(MIN_FRAGMENT_BYTES, min(MAX_BODY_BYTES, fragment))
        """The longest body of a fragment."""
        self._loop = loop
        self._paid_until = loop.time()
        """When all that was sent will have taken its time; the present or earlier: one may send."""
        self._waiting: dict[Sender, float] = {}
        """Since when, in order of arrival."""
        self._called: Sender | None = None
        """Whose turn it is; it may send one fragment."""
        self._timer: asyncio.TimerHandle | None = None

    def allows(self, sender: Sender) -> bool:
        """Whether it may send one fragment now; if not, its `flush` is called later."""
        if sender is self._called:
            self._called = None
            return True
        if not self._waiting and self._paid_until <= self._loop.time():
            return True
        self._waiting.setdefault(sender, self._loop.time())
        self._set_timer()
        return False

    def spent(self, count: int) -> None:
        """Bytes that were written, by whomever."""
        earliest = self._loop.time() - BURST_S
        self._paid_until = max(self._paid_until, earliest) + count / self.bytes_per_s

    def _set_timer(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_at(self._paid_until, self._due)

    def _due(self) -> None:
        self._timer = None
        while self._waiting and self._paid_until <= self._loop.time():
            sender = self._first()
            del self._waiting[sender]
            self._called = sender
            try:
                sender.flush()
            finally:
                self._called = None
        if self._waiting:
            self._set_timer()

    def _first(self) -> Sender:
        oldest, since = next(iter(self._waiting.items()))
        if self._loop.time() - since > MAX_WAIT_S:
            return oldest
        return min(self._waiting, key=_urgency)


def _urgency(sender: Sender) -> int:
    urgent = sender.next_class
    return len(ServiceClass) if urgent is None else int(urgent)
