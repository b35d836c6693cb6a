"""Links of the interference benchmark: as the product's, or with a stream for each message.

In arm B a step that goes to a server takes a stream of its own, as one call of gRPC would, and the
transport (yamux over TCP) shares the path among the streams. Answers to clients stay on the link:
servers do not dial clients, and nothing long goes there. Streams are opened ahead, so that no
message waits for that.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

from interference_arms import CHOSEN
from interference_relay import RelayedNetwork, Uplink

from swarm.errors import SwarmError
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Message, decode, encode
from swarm.spans import PeerId
from swarm.wire.frames import PRELUDE
from swarm.wire.links import Links
from swarm.wire.network import ByteStream, StreamReceiver
from swarm.wire.outgoing_message import Buffer

_MAGIC = b"ARMB"
_SPARES = 8
_OPEN_S = 10.0
_MULTIPLEXED = (ServiceClass.DECODE, ServiceClass.PREFILL)

LINKS: "list[ArmLinks]" = []
"""All of this process, so that they can be asked for figures."""
UPLINK = Uplink()
"""What this process sends through, where the network itself has neither rate nor delay."""


class _Sending:
    """A stream that carries one message to a server, and is open until it has come."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        stream.start(self)

    def send(self, data: bytes) -> None:
        self._stream.write(data)

    def bytes_received(self, data: bytes) -> None:
        raise RuntimeError("nobody answers on a stream of one message")

    def writable_again(self) -> None: ...

    def stream_ended(self, reason: str) -> None:
        """It has come: whoever has read all closes the stream."""


class _Arriving:
    """A stream that a peer opened: one message, or the product's link."""

    def __init__(
        self, stream: ByteStream, on_message: Callable[..., None], on_link: Callable[..., None]
    ) -> None:
        self.peer = stream.peer
        self.address = stream.address
        self._stream = stream
        self._on_message = on_message
        self._on_link = on_link
        self._data = bytearray()
        self._link: StreamReceiver | None = None
        stream.start(self)

    # ---- as the stream that the link sees

    def start(self, receiver: StreamReceiver) -> None:
        self._link = receiver
        early, self._data = bytes(self._data), bytearray()
        asyncio.get_running_loop().call_soon(receiver.bytes_received, early)

    def write(self, *parts: bytes | bytearray | memoryview) -> bool:
        return self._stream.write(*parts)

    def pause_reading(self) -> None:
        self._stream.pause_reading()

    def resume_reading(self) -> None:
        self._stream.resume_reading()

    def close(self) -> None:
        self._stream.close()

    # ---- as the receiver of the real stream

    def bytes_received(self, data: bytes) -> None:
        if self._link is not None:
            self._link.bytes_received(data)
            return
        self._data += data
        if len(self._data) < len(_MAGIC) + PRELUDE.size:
            return
        if not self._data.startswith(_MAGIC):
            self._on_link(self)
            return
        total, header = PRELUDE.unpack_from(self._data, len(_MAGIC))
        begin = len(_MAGIC) + PRELUDE.size
        if len(self._data) - begin == total:
            whole = memoryview(self._data)[begin:]
            self._stream.close()
            self._on_message(self.peer, decode(whole[:header]), whole[header:])

    def writable_again(self) -> None:
        if self._link is not None:
            self._link.writable_again()

    def stream_ended(self, reason: str) -> None:
        if self._link is not None:
            self._link.stream_ended(reason)


class ArmLinks(Links):
    """Takes the place of the product's `Links` in the benchmark's processes."""

    def __init__(self, network: Any, handler: Any, **named: Any) -> None:
        self._under = RelayedNetwork(network, UPLINK) if UPLINK.enabled else network
        super().__init__(self._under, handler, **named)
        self._receiver = handler
        self._spares: defaultdict[PeerId, deque[ByteStream]] = defaultdict(deque)
        self._opening: set[asyncio.Task[None]] = set()
        LINKS.append(self)

    async def start(self) -> None:
        await super().start()
        on_link = self._under.on_stream
        self._under.on_stream = lambda stream: (
            _Arriving(stream, self._receiver.on_message, on_link),
            None,
        )[1]

    def send(
        self,
        peer: PeerId,
        message: Message,
        payload: Sequence[Buffer] = (),
        service_class: ServiceClass = ServiceClass.CONTROL,
        session: bytes = b"",
        client: str = "",
    ) -> None:
        alone = CHOSEN.arm == "B" and service_class in _MULTIPLEXED and not self.is_client(peer)
        if not alone:
            super().send(peer, message, payload, service_class, session, client)
            return
        header = encode(message)
        body = b"".join((header, *payload))
        data = b"".join((_MAGIC, PRELUDE.pack(len(body), len(header)), body))
        spares = self._spares[peer]
        if spares:
            _Sending(spares.popleft()).send(data)
            self._in_task(self._open_spares(peer))
        else:
            self._in_task(self._open_and_send(peer, data))

    async def _open_and_send(self, peer: PeerId, data: bytes) -> None:
        _Sending(await self._under.dial(peer, _OPEN_S)).send(data)
        await self._open_spares(peer)

    async def _open_spares(self, peer: PeerId) -> None:
        while len(self._spares[peer]) < _SPARES:
            self._spares[peer].append(await self._under.dial(peer, _OPEN_S))

    def _in_task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: "asyncio.Task[None]") -> None:
        self._opening.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, SwarmError):
            raise error
