"""The same hash-chain swarm over real links and the in-memory network, in virtual time."""

import asyncio
import random
from array import array
from collections.abc import Callable
from contextlib import suppress

import pytest
from model_client import ModelClient
from model_server import ModelServer
from model_wire import Sent

from swarm.errors import PeerError, PeerTimeoutError
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Message
from swarm.spans import PeerId
from swarm.wire.links import Links
from swarm.wire.memory import MemoryNetworkHub, Path
from swarm.wire.virtual_time import run

TICK_S = 0.25
DEADLINE_S = 900.0
SEEDS = [*range(2), *(pytest.param(seed, marks=pytest.mark.matrix) for seed in range(2, 6))]


class Peer:
    """A server or client of the model with links of its own."""

    def __init__(self, hub: MemoryNetworkHub, model: ModelServer | ModelClient) -> None:
        self.model = model
        self.network = hub.network(model.peer, listens=isinstance(model, ModelServer))
        self.links = Links(self.network, self)
        self.losses: list[PeerId] = []
        self.closed = False

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        tokens = array("q")
        tokens.frombytes(payload)
        self.send(self.model.receive(peer, message, tokens.tolist(), self.now))

    def on_link_lost(self, peer: PeerId, reason: str) -> None:
        self.losses.append(peer)
        self.send(self.model.lose(peer, self.now))

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def send(self, sent: list[Sent]) -> None:
        for receiver, message, payload in sent:
            session = getattr(message, "session", b"")
            data = array("q", payload).tobytes()
            with suppress(PeerError):  # a lost link is told by on_link_lost
                self.links.send(receiver, message, [data], ServiceClass.DECODE, session, "")

    async def live(self, rng: random.Random) -> None:
        """Ticks, passes of the engine, and what the user does."""
        next_tick = 0.0
        while not self.closed:
            if isinstance(self.model, ModelServer):
                if self.model.passes:
                    self.send(self.model.compute(self.now))
            elif self.model.may_act:
                self.send(self.model.act(self.now))
            if self.now >= next_tick:
                next_tick = self.now + TICK_S
                self.send(self.model.tick(self.now))
            await asyncio.sleep(rng.uniform(0.001, 0.02))

    async def close(self) -> None:
        self.closed = True
        await self.links.close()
        await self.network.close()


Trouble = Callable[[MemoryNetworkHub, list[Peer], random.Random], None]


def resets(hub: MemoryNetworkHub, peers: list[Peer], rng: random.Random) -> None:
    one, other = rng.sample(peers, 2)
    hub.reset(one.model.peer, other.model.peer)


def partitions(hub: MemoryNetworkHub, peers: list[Peer], rng: random.Random) -> None:
    """Shorter than the grace time of links."""
    one, other = (peer.model.peer for peer in rng.sample(peers, 2))
    hub.partition(one, other)
    asyncio.get_running_loop().call_later(rng.uniform(0.1, 6.0), hub.heal, one, other)


async def swarm(seed: int, trouble: Trouble | None, *, kills: int = 0) -> list[ModelClient]:
    rng = random.Random(seed)
    hub = MemoryNetworkHub(seed, Path(loss=0.02 if trouble else 0.0, shortest_piece=7))
    names = [PeerId(f"server-{number:04}") for number in range(7)]
    servers = [Peer(hub, ModelServer(name, capacity_tokens=4 * 120 * 3)) for name in names]
    clients = [
        ModelClient(
            PeerId(f"client-{number:04}"),
            random.Random(rng.random()),
            names,
            turns=12,
            rows=4,
            length=120,
            can_reroute=bool(kills),
            eagerness=0.01,
        )
        for number in range(3)
    ]
    users = [Peer(hub, client) for client in clients]
    peers = [*servers, *users]
    for one in peers:
        for other in peers:
            if one is not other:
                hub.set_path(one.model.peer, other.model.peer, delay_s=rng.uniform(0.0, 0.08))
    async with asyncio.TaskGroup() as tasks:
        for peer in peers:
            await peer.links.start()
            tasks.create_task(peer.live(random.Random(rng.random())))
        for user in users:
            for name in names:
                await user.links.connect(name, 5.0)
        for user, client in zip(users, clients, strict=True):
            user.send(client.start(user.now))
        ends = asyncio.get_running_loop().time() + DEADLINE_S
        while not all(client.done for client in clients):
            assert asyncio.get_running_loop().time() < ends, "it does not end"
            await asyncio.sleep(rng.uniform(0.02, 0.3))
            if trouble is not None:
                trouble(hub, peers, rng)
            if kills and rng.random() < 0.2:
                kills -= 1
                await servers.pop(rng.randrange(len(servers))).close()
                peers = [*servers, *users]
        await asyncio.sleep(60.0)
        for server in servers:
            assert isinstance(server.model, ModelServer)
            assert not server.model.running
            assert server.model.admission.free_tokens == server.model.admission.capacity_tokens
        for peer in peers:
            await peer.close()
    return clients


@pytest.mark.parametrize("trouble", [None, resets, partitions])
@pytest.mark.parametrize("seed", SEEDS)
def test_links_lose_nothing_of_a_session(seed: int, trouble: Trouble | None) -> None:
    clients = run(swarm(seed, trouble))
    assert [client.error for client in clients] == [None] * 3
    assert sum(client.answers for client in clients) > 10


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_servers_are_routed_around(seed: int) -> None:
    clients = run(swarm(seed, None, kills=2))
    assert [client.error for client in clients] == [None] * 3


def gave_up_opening(client: ModelClient) -> bool:
    """A partition may last longer than an opening waits for an answer; no session is there yet."""
    return client.session is None and isinstance(client.error, PeerTimeoutError)


@pytest.mark.matrix
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("trouble", [resets, partitions])
def test_links_lose_nothing_of_a_session_on_many_seeds(trouble: Trouble) -> None:
    for seed in range(100, 400):
        clients = run(swarm(seed, trouble))
        errors = [client.error for client in clients if not gave_up_opening(client)]
        assert not any(errors), seed
