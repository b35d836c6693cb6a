"""Servers and raw clients over the in-memory network: no model, no sockets, virtual time."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import torch
from toy_engine import ToyEngine

from swarm.server.reception import GRANT_CONTEXT, Quotas
from swarm.server.service import Hosting, Service
from swarm.sessions.admission import Admission
from swarm.sessions.messages import (
    Commit,
    Grant,
    Held,
    Hop,
    Message,
    Open,
    Output,
    SignedGrant,
    Step,
    Want,
    encode,
)
from swarm.spans import PeerId, SessionId, Span
from swarm.wire.codecs import pack_tensors, unpack_tensors
from swarm.wire.identity import Identity
from swarm.wire.links import Links
from swarm.wire.memory import MemoryNetworkHub

CHECKPOINT = "toy-checkpoint"
HIDDEN = 4
PAGE = 16
CAPACITY = 160

Kind = TypeVar("Kind")
_session_numbers = itertools.count(1)


class ToyServer:
    """A `Service` over a toy engine."""

    def __init__(
        self, hub: MemoryNetworkHub, span: str, capacity: int, quotas: Quotas | None
    ) -> None:
        self.identity = Identity.create()
        self.span = Span.parse(span)
        self.engine = ToyEngine()
        self.admission = Admission(capacity, PAGE)
        self.service = Service(
            Hosting(self.identity.peer_id, CHECKPOINT, self.span, HIDDEN),
            self.engine,
            self.admission,
            status=lambda: {"blocks": span, "sessions": self.service.session_count},
            quotas=quotas,
        )
        self.engine.on_results = self.service.on_results
        self.network = hub.network(self.identity.peer_id)
        self.links = Links(self.network, self.service)

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    def assert_empty(self) -> None:
        """Everything is as at the start."""
        self.admission.validate()
        assert self.admission.free_tokens == self.admission.capacity_tokens
        assert not self.admission.line
        assert not self.engine.rooms
        assert self.service.session_count == self.service.waiting_count == 0


class ToyClient:
    """Sends what it is told to, whether that is sound or not, and keeps what comes."""

    def __init__(self, hub: MemoryNetworkHub) -> None:
        self.identity = Identity.create()
        self.network = hub.network(self.identity.peer_id, listens=False)
        self.links = Links(self.network, self)
        self.inbox: list[tuple[PeerId, Message, bytes]] = []
        self._arrived = asyncio.Event()

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        self.inbox.append((peer, message, bytes(payload)))
        self._arrived.set()

    def on_link_lost(self, peer: PeerId, reason: str) -> None: ...

    async def receive(self, kind: type[Kind], timeout_s: float = 30.0) -> Kind:
        """The next message of this kind; others before it stay."""
        async with asyncio.timeout(timeout_s):
            while True:
                for index, (_, message, _) in enumerate(self.inbox):
                    if isinstance(message, kind):
                        del self.inbox[index]
                        return message
                self._arrived.clear()
                await self._arrived.wait()

    async def receive_output(self) -> tuple[Output, torch.Tensor | None]:
        """The next `Output`, with its tensor."""
        async with asyncio.timeout(30):
            while True:
                for index, (_, message, payload) in enumerate(self.inbox):
                    if isinstance(message, Output):
                        del self.inbox[index]
                        tensors = unpack_tensors(message.tensors, bytearray(payload))
                        return message, tensors.get("hidden")
                self._arrived.clear()
                await self._arrived.wait()

    def count(self, kind: type[Any]) -> int:
        return sum(isinstance(message, kind) for _, message, _ in self.inbox)

    def grant(self, servers: Sequence[ToyServer], **changes: Any) -> Grant:
        values: dict[str, Any] = {
            "session": next(_session_numbers).to_bytes(16),
            "route": 1,
            "checkpoint": CHECKPOINT,
            "hops": tuple(Hop(one.peer, one.span.start, one.span.end) for one in servers),
            "client": self.peer,
            "rows": 1,
            "length": PAGE,
            "dtype": "float32",
            "lifetime_s": 3600.0,
        }
        return Grant(**{**values, **changes})

    def sign(self, grant: Grant) -> SignedGrant:
        data = encode(grant)
        return SignedGrant(data, self.identity.sign(GRANT_CONTEXT + data))

    async def send(
        self, server: ToyServer, message: Message, hidden: torch.Tensor | None = None
    ) -> None:
        await self.links.connect(server.peer, 5)
        buffers = [] if hidden is None else pack_tensors({"hidden": hidden})[1]
        session = getattr(message, "session", b"")
        self.links.send(server.peer, message, buffers, session=session)

    async def open(self, servers: Sequence[ToyServer], **changes: Any) -> Grant:
        """A committed session over `servers`."""
        grant = self.grant(servers, **changes)
        signed = self.sign(grant)
        for hop, server in enumerate(servers):
            await self.send(server, Open(signed, hop))
            await self.receive(Held)
        for server in servers:
            await self.send(server, Commit(grant.session, grant.route))
        return grant

    def step(self, grant: Grant, hidden: torch.Tensor, start: int = 0, **changes: Any) -> Step:
        tokens = len(hidden)
        values: dict[str, Any] = {
            "session": grant.session,
            "epoch": 0,
            "seq": start,
            "starts": (start,),
            "counts": (tokens,),
            "position_ids": tuple(range(start, start + tokens)),
            "emit_from": (),
            "want": Want.ALL,
            "tensors": pack_tensors({"hidden": hidden})[0],
        }
        return Step(**{**values, **changes})

    async def push(
        self, server: ToyServer, grant: Grant, hidden: torch.Tensor, start: int = 0, **changes: Any
    ) -> None:
        await self.send(server, self.step(grant, hidden, start, **changes), hidden)


class World:
    """All peers of a test; closed together."""

    def __init__(self) -> None:
        self.hub = MemoryNetworkHub(seed=1)
        self._servers: list[ToyServer] = []
        self._clients: list[ToyClient] = []

    async def server(
        self, span: str = "0:2", capacity: int = CAPACITY, quotas: Quotas | None = None
    ) -> ToyServer:
        server = ToyServer(self.hub, span, capacity, quotas)
        server.service.start(server.links)
        await server.links.start()
        self._servers.append(server)
        return server

    async def client(self) -> ToyClient:
        client = ToyClient(self.hub)
        await client.links.start()
        self._clients.append(client)
        return client

    async def vanish(self, peer: ToyServer | ToyClient) -> None:
        """As if its process was killed."""
        await peer.network.close()

    async def close(self) -> None:
        for server in self._servers:
            await server.service.close()
            server.assert_empty()
        for peer in (*self._clients, *self._servers):
            await peer.links.close()
            await peer.network.close()


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """Afterwards no server holds anything, and no task is left."""
    before = asyncio.all_tasks()
    made = World()
    try:
        yield made
    finally:
        await made.close()
    await asyncio.sleep(1)
    assert asyncio.all_tasks() <= before


def session_of(grant: Grant) -> SessionId:
    return SessionId(grant.session)
