"""A server that joins a swarm in whose index anybody has written down any number of models."""

import asyncio
from types import SimpleNamespace

import pytest

from swarm.dht.directory import Directory
from swarm.dht.memory import MemoryDirectoryNode
from swarm.dht.records import ServerRecord
from swarm.errors import CheckpointError, PeerTimeoutError, ProtocolVersionError
from swarm.routing.view import Numerics, ServerState
from swarm.server.events import ServerEvent
from swarm.server.neighbourhood import MAX_MODELS, Neighbourhood
from swarm.spans import Span
from swarm.wire.entrance import MemoryMember
from swarm.wire.frames import PROTOCOL_VERSION
from swarm.wire.identity import Identity
from swarm.wire.memory import MemoryNetworkHub
from swarm.wire.virtual_time import run

OURS = "0urs" * 10


class CountingDirectory(Directory):
    """Counts what is looked up; some of it is not found in time."""

    def __init__(self, *args, lost=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.looked_up = []
        self.lost = lost
        self.then = None
        """What happens just after the next look."""

    async def snapshot(self, checkpoint):
        self.looked_up.append(checkpoint)
        await asyncio.sleep(10)
        if checkpoint in self.lost:
            raise PeerTimeoutError("nobody answers")
        found = await super().snapshot(checkpoint)
        if self.then is not None:
            then, self.then = self.then, None
            await then
        return found


class Swarm:
    def __init__(self):
        self.hub = MemoryNetworkHub()
        self.told: list[ServerEvent] = []
        self.directory = CountingDirectory(self._node())

    def _node(self):
        network = MemoryMember(self.hub, Identity.create(), listens=True)
        return MemoryDirectoryNode(network)

    async def announce(self, checkpoint, model, protocol=PROTOCOL_VERSION):
        directory = Directory(self._node())
        record = ServerRecord(
            peer=directory._node.network.peer_id,
            span=Span(0, 4),
            state=ServerState.ONLINE,
            checkpoint=checkpoint,
            model=model,
            num_blocks=4,
            numerics=Numerics("float32"),
            version="1",
            protocol=protocol,
        )
        assert await directory.announce(record)
        await directory.close()

    async def check(self):
        plan = SimpleNamespace(identity=OURS, checkpoint=SimpleNamespace(name="my/model"))
        neighbourhood = Neighbourhood(self.directory, plan, self.told.append, None)
        async with asyncio.timeout(30):
            await neighbourhood.check_model()


async def crowded():
    swarm = Swarm()
    for number in range(3 * MAX_MODELS):
        await swarm.announce(f"junk-{number:04}", f"a{number:04}")
    return swarm


def test_only_some_of_the_other_models_are_looked_at():
    async def story():
        swarm = await crowded()
        await swarm.check()
        assert swarm.directory.looked_up[0] == OURS
        assert len(swarm.directory.looked_up) == 1 + MAX_MODELS
        assert "new in this swarm" in swarm.told[0].text

    run(story())


def test_none_is_looked_at_where_ours_is_served():
    async def story():
        swarm = await crowded()
        await swarm.announce(OURS, "model", protocol=7)
        with pytest.raises(ProtocolVersionError):
            await swarm.check()
        await swarm.announce(OURS, "model")
        await swarm.check()
        assert set(swarm.directory.looked_up) == {OURS}
        assert not swarm.told

    run(story())


def test_a_server_of_ours_that_comes_meanwhile_is_one_of_ours():
    async def story():
        swarm = await crowded()
        swarm.directory.then = swarm.announce(OURS, "model")
        await swarm.check()
        assert swarm.directory.looked_up.count(OURS) == 2
        assert not swarm.told

    run(story())


def test_another_checkpoint_under_our_name_is_found_in_the_crowd():
    async def story():
        swarm = await crowded()
        await swarm.announce("other-weights", "model")
        with pytest.raises(CheckpointError, match="another checkpoint as model"):
            await swarm.check()

    run(story())


def test_a_model_whose_servers_are_not_found_keeps_nobody_out():
    async def story():
        swarm = await crowded()
        swarm.directory.lost = {f"junk-{number:04}" for number in range(3)}
        await swarm.check()

    run(story())
