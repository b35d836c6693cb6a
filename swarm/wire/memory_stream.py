"""One end of a stream of the network in memory: what is written to it arrives later, or not."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from swarm.spans import PeerId
from swarm.wire.network import StreamReceiver

if TYPE_CHECKING:
    from swarm.wire.memory import MemoryNetworkHub


class MemoryStream:
    """One end of a stream: writes go to `other`, which reads them when they arrive."""

    other: "MemoryStream"

    def __init__(self, hub: "MemoryNetworkHub", owner: PeerId, peer: PeerId) -> None:
        self.owner = owner
        self._peer = peer
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._receiver: StreamReceiver | None = None
        self._closed = False
        self._arriving: deque[tuple[float, bytes | None]] = deque()
        """(when, what); None: the end."""
        self._arriving_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._waits_for_room = False
        self._paused = False

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def address(self) -> str:
        return self._hub.address_of(self._peer)

    def start(self, receiver: StreamReceiver) -> None:
        self._receiver = receiver
        self.resume()

    def write(self, *parts: bytes | bytearray | memoryview) -> bool:
        if self._closed or self.other._closed:
            return False
        if data := b"".join(parts):
            arrives = self._hub.arrival_time(self.owner, self._peer, len(data))
            self.other._expect(arrives, data)
        if self.other._arriving_bytes > self._hub.path(self.owner, self._peer).buffer_bytes:
            self._waits_for_room = True
            return False
        return True

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self.resume()

    def close(self) -> None:
        if not self._closed:
            if not self.other._closed:
                self.other._expect(self._hub.arrival_time(self.owner, self._peer, 0), None)
            self._end()

    # ---- for the hub

    def resume(self) -> None:
        """Reading may go on: the receiver is there and wants more, or the path is healed."""
        if self._timer is None and self._arriving and not self._closed:
            wait_s = max(0.0, self._arriving[0][0] - self._loop.time())
            self._timer = self._loop.call_later(wait_s, self._arrive)

    def break_both(self) -> None:
        for end in (self, self.other):
            if not end._closed:
                end._end()
                if end._receiver is not None:
                    self._loop.call_soon(end._receiver.stream_ended, "the stream was reset")

    # ---- inside

    def _expect(self, when: float, data: bytes | None) -> None:
        if self._arriving:
            when = max(when, self._arriving[-1][0])
        self._arriving.append((when, data))
        self._arriving_bytes += len(data or b"")
        self.resume()

    def _arrive(self) -> None:
        self._timer = None
        now = self._loop.time() + 1e-9
        while self._arriving and self._arriving[0][0] <= now:
            held = self._hub.is_held(self._peer, self.owner)
            if self._receiver is None or self._paused or held:
                return
            _, data = self._arriving.popleft()
            if data is None:
                self._end()
                self._receiver.stream_ended("the peer closed the stream")
                return
            self._arriving_bytes -= len(data)
            for piece in self._pieces(data):
                self._receiver.bytes_received(piece)
                if self._closed:
                    return
        if self.other._waits_for_room and not self.other._closed:
            low_water = self._hub.path(self._peer, self.owner).buffer_bytes // 4
            if self._arriving_bytes <= low_water and self.other._receiver is not None:
                self.other._waits_for_room = False
                self._loop.call_soon(self.other._tell_writable)
        self.resume()

    def _tell_writable(self) -> None:
        if not self._closed and self._receiver is not None:
            self._receiver.writable_again()

    def _pieces(self, data: bytes) -> list[bytes]:
        shortest = self._hub.path(self._peer, self.owner).shortest_piece
        if shortest is None:
            return [data]
        pieces = []
        while data:
            length = self._hub.random.randint(shortest, max(shortest, len(data)))
            pieces.append(data[:length])
            data = data[length:]
        return pieces

    def _end(self) -> None:
        self._closed = True
        self._arriving.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._hub.forget(self)
