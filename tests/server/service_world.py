"""Servers and raw clients over the in-memory network: no model, no sockets, virtual time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import torch
from raw_client import RawClient
from toy_engine import ToyEngine

from swarm.server.reception import Quotas
from swarm.server.service import Hosting, Service
from swarm.sessions.admission import Admission
from swarm.sessions.messages import Grant
from swarm.spans import PeerId, SessionId, Span
from swarm.wire.identity import Identity
from swarm.wire.links import Links
from swarm.wire.memory import MemoryNetworkHub
from swarm.wire.virtual_time import run

CHECKPOINT = "toy-checkpoint"
HIDDEN = 4
PAGE = 16
CAPACITY = 160


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
            quotas=quotas or Quotas(256, None),
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


class World:
    """All peers of a test; closed together."""

    def __init__(self) -> None:
        self.hub = MemoryNetworkHub(seed=1)
        self._servers: list[ToyServer] = []
        self._clients: list[RawClient] = []

    async def server(
        self, span: str = "0:2", capacity: int = CAPACITY, quotas: Quotas | None = None
    ) -> ToyServer:
        server = ToyServer(self.hub, span, capacity, quotas)
        server.service.start(server.links)
        await server.links.start()
        self._servers.append(server)
        return server

    async def client(self) -> RawClient:
        identity = Identity.create()
        network = self.hub.network(identity.peer_id, listens=False)
        client = RawClient(identity, network, CHECKPOINT)
        await client.links.start()
        self._clients.append(client)
        return client

    async def vanish(self, peer: ToyServer | RawClient) -> None:
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


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, HIDDEN, generator=generator)


def in_world(story: Callable[[World], Awaitable[None]]) -> None:
    """Runs the story in virtual time; every server must be empty after it."""

    async def main() -> None:
        async with world() as made:
            await story(made)

    run(main())


async def opened(world_: World, servers: int = 1) -> tuple[list[ToyServer], RawClient, Grant]:
    chain = [await world_.server(f"{2 * hop}:{2 * hop + 2}") for hop in range(servers)]
    client = await world_.client()
    return chain, client, await client.open(chain)
