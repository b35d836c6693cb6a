"""Long writes to a socket from where they lie, beside an asyncio transport that does the rest."""

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

_SHORT_BYTES = 16 * 1024
_HANDED_OVER_BYTES = 1024
_PARTS_AT_ONCE = 64


class SocketWriter:
    """A transport copies what the kernel does not take at once. Here it waits as it is, but for the
    first bytes of it: these are the transport's, which tells when the kernel takes more."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        """The transport's protocol is to call `blocked` and `free_again`."""
        transport.set_write_buffer_limits(high=0)
        self._transport = transport
        self._fd: int = transport.get_extra_info("socket").fileno()
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._blocked = False

    @property
    def waiting_bytes(self) -> int:
        """Written, and not the kernel's yet."""
        return self._waiting_bytes + self._transport.get_write_buffer_size()

    def write(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Sends all of `parts`, in order; they must not be changed afterwards."""
        size = sum(map(len, parts))
        if size <= _SHORT_BYTES and not self._waiting:
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))
            return
        self._waiting.extend(map(memoryview, parts))
        self._waiting_bytes += size
        if not self._blocked:
            self._send()

    def blocked(self) -> None:
        """The transport has something that the kernel did not take."""
        self._blocked = True

    def free_again(self) -> None:
        """The transport has nothing any more."""
        self._blocked = False
        if self._waiting:
            self._send()

    def hand_over(self) -> None:
        """The transport gets all that waits: it is to be closed when it has sent that."""
        waiting = b"".join(self._waiting)
        self.clear()
        if waiting:
            self._transport.write(waiting)

    def clear(self) -> None:
        """What waits will not be sent."""
        self._waiting.clear()
        self._waiting_bytes = 0

    def _send(self) -> None:
        while self._waiting and not self._blocked:
            if self._transport.is_closing():
                self.clear()  # the number may be another file's by now
                return
            with suppress(OSError):  # it is full, or broken: the transport will find out
                self._take(os.writev(self._fd, list(islice(self._waiting, _PARTS_AT_ONCE))))
            if self._waiting:
                first = self._waiting[0][:_HANDED_OVER_BYTES]
                self._take(len(first))
                self._transport.write(first)

    def _take(self, count: int) -> None:
        """The first bytes wait no longer."""
        waiting = self._waiting
        self._waiting_bytes -= count
        while waiting and count >= len(waiting[0]):
            count -= len(waiting.popleft())
        if count:
            waiting[0] = waiting[0][count:]
