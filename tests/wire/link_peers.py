"""Peers with links over the in-memory network, and what they have received."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Message, StatusRequest, encode
from swarm.spans import PeerId
from swarm.wire.frames import HEADER, PRELUDE, Frame, FrameReader, FrameType, Hello, pack_hello
from swarm.wire.inbox import CREDIT_BYTES
from swarm.wire.links import Links
from swarm.wire.memory import MemoryNetwork, MemoryNetworkHub, Path
from swarm.wire.network import ByteStream
from swarm.wire.virtual_time import run

ANNA, BERT, CARL = PeerId("peer-anna"), PeerId("peer-bert"), PeerId("peer-carl")


def request(message: Message) -> int:
    assert isinstance(message, StatusRequest)
    return message.request


def content(number: int, size: int) -> bytes:
    """The payload that message `number` has in these tests."""
    return bytes([number % 251]) * size


class Peer:
    """One peer: `received` are `(sender, number, payload length)`, checked; `lost` the losses."""

    def __init__(
        self, hub: MemoryNetworkHub, peer_id: PeerId, *, listens: bool = True, **limits: Any
    ) -> None:
        self.id = peer_id
        self.network = hub.network(peer_id, listens=listens)
        self.received: list[tuple[PeerId, int, int]] = []
        self.lost: list[tuple[PeerId, str]] = []
        self.links = Links(self.network, self, **{"control_per_s": 1e6, **limits})

    async def __aenter__(self) -> "Peer":
        await self.links.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.links.close()
        await self.network.close()

    async def vanish(self) -> None:
        """As if the process was killed: the streams break, nobody says goodbye."""
        await self.network.close()
        await self.links.close()

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        number = request(message)
        assert bytes(payload) == content(number, len(payload))
        assert not payload.readonly
        self.received.append((peer, number, len(payload)))

    def on_link_lost(self, peer: PeerId, reason: str) -> None:
        self.lost.append((peer, reason))

    def numbers(self) -> list[int]:
        return [number for _, number, _ in self.received]

    def send(
        self,
        to: PeerId,
        number: int,
        size: int = 0,
        service_class: ServiceClass = ServiceClass.DECODE,
        session: bytes = b"",
    ) -> None:
        payload: Sequence[bytes] = [content(number, size)]
        self.links.send(to, StatusRequest(number), payload, service_class, session)


class RawStream:
    """A hand-driven end of a stream: keeps the frames that came."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.frames: list[Frame] = []
        self.ended: str | None = None
        self._reader = FrameReader()
        stream.start(self)

    def bytes_received(self, data: bytes) -> None:
        self.frames += self._reader.feed(data)

    def writable_again(self) -> None:
        pass

    def stream_ended(self, reason: str) -> None:
        self.ended = reason


MEGABYTE = 1_000_000
HELLO = pack_hello(Hello(77, 0, 1, True, 0, (), CREDIT_BYTES))
STATUS = encode(StatusRequest(5))


def two_peers(
    body: Callable[[MemoryNetworkHub, Peer, Peer], Awaitable[None]],
    path: Path | None = None,
) -> None:
    """Runs `body` with two peers, and checks that nothing of them is left afterwards."""

    async def main() -> None:
        hub = MemoryNetworkHub(seed=1, path=path or Path(delay_s=0.01))
        async with Peer(hub, ANNA) as anna, Peer(hub, BERT) as bert:
            await body(hub, anna, bert)
        assert hub.streams(ANNA, BERT) == hub.streams(BERT, ANNA) == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


async def raw_link(hub: MemoryNetworkHub, hello: bytes = HELLO) -> RawStream:
    """A hand-driven peer, dialled to BERT, after both hellos."""
    return await raw_stream(hub.network(CARL), hello)


async def raw_stream(network: MemoryNetwork, hello: bytes) -> RawStream:
    raw = RawStream(await network.dial(BERT, 5))
    raw.stream.write(hello)
    await asyncio.sleep(0.1)
    return raw


def data(number: int, body: bytes, flags: int = 3, service_class: int = 1) -> bytes:
    return HEADER.pack(FrameType.DATA, service_class, flags, len(body), number, 0, 0) + body


def whole(message: bytes, payload: bytes = b"") -> bytes:
    return PRELUDE.pack(len(message) + len(payload), len(message)) + message + payload
