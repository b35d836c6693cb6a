"""Clocks that were ahead and are set right: nobody is hidden for the time between."""

import pytest
from server_records import CHECKPOINT, record

from swarm.dht.directory import Directory
from swarm.dht.memory import MemoryDirectoryNode
from swarm.routing.view import ServerState
from swarm.wire.entrance import MemoryMember
from swarm.wire.identity import Identity
from swarm.wire.memory import MemoryNetworkHub
from swarm.wire.virtual_time import run


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def member(hub: MemoryNetworkHub, ours: Clock, holders: Clock) -> Directory:
    network = MemoryMember(hub, Identity.create(), listens=True)
    return Directory(MemoryDirectoryNode(network, clock=holders), clock=ours)


@pytest.mark.parametrize("back_s", [1.0, 20.0, 33.0, 45.0, 3600.0])
@pytest.mark.parametrize("alone", [True, False])
def test_a_server_whose_clock_is_set_back_is_announced_on(back_s: float, alone: bool) -> None:
    """`alone`: the others' clocks were right all the time."""

    async def story() -> None:
        hub, holders = MemoryNetworkHub(), Clock()
        ours = Clock() if alone else holders
        ours.now += back_s
        server, reader = member(hub, ours, holders), member(hub, holders, holders)
        peer = server._node.network.peer_id
        await server.announce(record(peer, state=ServerState.JOINING))
        ours.now -= back_s
        assert await server.announce(record(peer))
        (found,) = await reader.snapshot(CHECKPOINT)
        assert found.state is ServerState.ONLINE
        await server.close()

    run(story())
