"""Fair among clients on real servers: what the engine's queue charged whom, by its own counters.

Passes have room for one chunk, and the engine is held up until everybody waits. Then the bound of
`service_counters` holds: while two sides both wait, what they received differs by at most twice
the largest single charge.
"""

import json
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from raw_client import RawClient
from tiny_models import SIZES, save_tiny

from swarm.models.checkpoint import open_checkpoint
from swarm.models.slice import BlockSlice
from swarm.scheduling.fair_queue import Entry, FairQueue
from swarm.server.engine import Engine
from swarm.server.server import Server
from swarm.sessions.messages import Output, Want
from swarm.spans import PeerId, Span
from swarm.testing import LocalSwarm
from swarm.wire.identity import Identity
from swarm.wire.libp2p import Libp2pNetwork
from swarm.wire.network import Network

CHUNK_TOKENS = 20
"""More than what counts as decode."""
SINGLE_CHUNKS = 24
SESSIONS = 16
CHUNKS_OF_MANY = 3
"""In each session of whoever has many, or of each identity of a crowd."""
PATIENCE_S = 60.0

NETWORKS = [
    pytest.param(False, id="in memory"),
    pytest.param(True, id="libp2p on loopback", marks=pytest.mark.matrix),
]


@dataclass(frozen=True)
class Charge:
    client: str
    seconds: float
    waiting: frozenset[str]
    """The clients that have something in the queue, this one among them."""


class Ledger(FairQueue[Any]):
    """The engine's queue, which also remembers what it charged."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.charges: list[Charge] = []
        self.waiting: Counter[str] = Counter()
        self.sessions: dict[bytes, str] = {}

    def push(self, entry: Entry[Any], now: float = 0.0) -> None:
        super().push(entry, now)
        self.waiting[entry.client] += 1
        self.sessions[entry.session] = entry.client

    def serve(self, entry: Entry[Any], amount: float, now: float = 0.0) -> None:
        self.charges.append(Charge(entry.client, amount, frozenset(+self.waiting)))
        super().serve(entry, amount, now)

    def _forget(self, entry: Entry[Any]) -> None:
        super()._forget(entry)
        self.waiting[entry.client] -= 1

    def contested(self, one: Collection[str], other: Collection[str]) -> list[Charge]:
        """The longest run of charges during which both sides waited."""
        runs: list[list[Charge]] = [[]]
        for charge in self.charges:
            if charge.waiting & set(one) and charge.waiting & set(other):
                runs[-1].append(charge)
            else:
                runs.append([])
        return max(runs, key=len)


def check_fairness(charges: list[Charge], one: Collection[str]) -> None:
    """No stretch of these gives one side more than the bound."""
    ahead = [0.0, *accumulate(c.seconds if c.client in one else -c.seconds for c in charges)]
    bound = 2 * max(charge.seconds for charge in charges)
    assert max(ahead) - min(ahead) <= bound + 1e-9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that reads prompts of some hundred tokens."""
    where: Path = tmp_path_factory.mktemp("models") / "long"
    save_tiny("llama", where)
    config = where / "config.json"
    longer = {"max_position_embeddings": CHUNK_TOKENS * SINGLE_CHUNKS + 32}
    config.write_text(json.dumps(json.loads(config.read_text()) | longer))
    return where


class HeldEngine:
    """The server's only engine: it begins no pass while `free` is not set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = threading.Event()
        self.free.set()
        self._queues: list[Ledger] = []
        forward = BlockSlice.forward

        def held_up(*arguments: Any) -> torch.Tensor:
            assert self.free.wait(PATIENCE_S)
            return forward(*arguments)

        def ledger(*arguments: Any, **named: Any) -> Ledger:
            self._queues.append(Ledger(*arguments, **named))
            return self._queues[-1]

        monkeypatch.setattr(BlockSlice, "forward", held_up)
        monkeypatch.setattr("swarm.server.engine.FairQueue", ledger)
        monkeypatch.setattr(
            "swarm.server.stay.Engine", partial(Engine, max_pass_tokens=CHUNK_TOKENS)
        )

    @property
    def ledger(self) -> Ledger:
        (queue,) = self._queues
        return queue


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldEngine]:
    held = HeldEngine(monkeypatch)
    yield held
    held.free.set()


@pytest.mark.parametrize("loopback", NETWORKS)
def test_sixteen_sessions_get_no_more_than_one(
    folder: Path, engine: HeldEngine, loopback: bool
) -> None:
    """Two users as they are, `generate` in threads; the one with a single session has a prompt as
    long as half of what all sessions of the other have."""

    def ask(model: Any, chunks: int) -> None:
        ids = torch.arange(CHUNK_TOKENS * chunks)[None] % 90 + 3
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)

    pieces: dict[str, Any] = {"prefill_chunk_tokens": CHUNK_TOKENS}
    with (
        LocalSwarm(folder, "0:4", loopback=loopback) as swarm,
        swarm.client(window=CHUNKS_OF_MANY, **pieces) as of_many,
        swarm.client(window=SINGLE_CHUNKS, **pieces) as of_one,
    ):
        asks = [(of_one, SINGLE_CHUNKS), *[(of_many, CHUNKS_OF_MANY)] * SESSIONS]
        asking = [threading.Thread(target=ask, args=each) for each in asks]
        engine.free.clear()
        for thread in asking:
            thread.start()
        everything = SINGLE_CHUNKS + SESSIONS * CHUNKS_OF_MANY
        swarm.wait_until(lambda: engine.ledger.waiting.total() >= everything - 1)
        engine.free.set()
        for thread in asking:
            thread.join(PATIENCE_S)
    sessions = Counter(engine.ledger.sessions.values())
    assert sorted(sessions.values()) == [1, SESSIONS]
    single, many = sorted(sessions, key=lambda client: sessions[client])
    charges = engine.ledger.contested([single], [many])
    assert len(charges) >= 2 * SINGLE_CHUNKS - 4
    check_fairness(charges, [single])


IDENTITIES = {False: 30, True: 5}
"""Of the crowd: each has a libp2p daemon of its own, or none."""
HONEST_ADDRESS = "127.0.1.1"


@dataclass(frozen=True)
class Host:
    """A server as `RawClient` wants it."""

    peer: PeerId
    span: Span


class Crowd:
    """Clients that each wait with some chunks, from addresses of our choice."""

    def __init__(self, swarm: LocalSwarm, server: Server, folder: Path, loopback: bool) -> None:
        self._swarm = swarm
        self._server = server
        self._host = Host(server.peer_id, Span(0, 4))
        self._checkpoint = open_checkpoint(str(folder)).identity
        self._loopback = loopback
        self._stack = AsyncExitStack()
        self._clients: dict[RawClient, int] = {}
        """And how many answers each awaits."""

    async def join(self, address: str, chunks: int) -> PeerId:
        """A new identity behind this address, whose prompt has so many chunks."""
        identity = Identity.create()
        network = await self._network(identity, address)
        self._stack.push_async_callback(network.close)
        client = RawClient(identity, network, self._checkpoint)
        await client.links.start()
        self._stack.push_async_callback(client.links.close)
        grant = await client.open([self._host], length=chunks * CHUNK_TOKENS)
        for seq in range(chunks):
            hidden = torch.ones(CHUNK_TOKENS, int(SIZES["hidden_size"]))
            start = seq * CHUNK_TOKENS
            await client.push(self._host, grant, hidden, start, seq=seq, want=Want.NONE)
        self._clients[client] = chunks
        return identity.peer_id

    async def answered(self) -> None:
        """All chunks of everybody are; they leave."""
        for client, chunks in self._clients.items():
            for _ in range(chunks):
                await client.receive(Output, PATIENCE_S)
        await self._stack.aclose()

    async def _network(self, identity: Identity, address: str) -> Network:
        if self._loopback:
            listen = [f"/ip4/{address}/tcp/0"]  # libp2p dials from where it listens
            joined = [self._server.address]
            return await Libp2pNetwork.create(identity, listen=listen, initial_peers=joined)
        hub = self._swarm._in_memory()
        hub.set_address(identity.peer_id, f"/ip4/{address}/tcp/4001")
        return hub.network(identity.peer_id, listens=False)


@pytest.mark.parametrize("loopback", NETWORKS)
def test_a_crowd_of_identities_behind_one_prefix_gets_one_groups_share(
    folder: Path, engine: HeldEngine, loopback: bool
) -> None:
    identities = IDENTITIES[loopback]
    each = -(-2 * SINGLE_CHUNKS // identities)
    with LocalSwarm(folder, "0:4", loopback=loopback) as swarm:
        crowd = Crowd(swarm, swarm.servers[0], folder, loopback)

        async def come() -> tuple[PeerId, list[PeerId]]:
            honest = await crowd.join(HONEST_ADDRESS, SINGLE_CHUNKS)
            return honest, [await crowd.join(f"127.0.0.{n + 2}", each) for n in range(identities)]

        engine.free.clear()
        honest, others = swarm.run(come())
        everything = SINGLE_CHUNKS + identities * each
        swarm.wait_until(lambda: engine.ledger.waiting.total() >= everything - 1)
        engine.free.set()
        swarm.run(crowd.answered())
    charges = engine.ledger.contested([honest], others)
    assert len(charges) >= 2 * SINGLE_CHUNKS - 4
    check_fairness(charges, [honest])
    assert len({charge.client for charge in charges}) > identities // 2
