"""Two servers with copies of one identity file: the one that reads of the other says so."""

import logging

import pytest
from server_records import CHECKPOINT, record

from swarm.dht.directory import Directory
from swarm.dht.memory import MemoryDirectoryNode
from swarm.wire.entrance import MemoryMember
from swarm.wire.identity import Identity
from swarm.wire.memory import MemoryNetworkHub
from swarm.wire.virtual_time import run


def test_a_twin_is_told_of_once_and_oneself_never(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        identity, clock = Identity(b"t" * 32), [1_800_000_000.0]
        hub = MemoryNetworkHub()
        node = MemoryDirectoryNode(
            MemoryMember(hub, identity, listens=True), clock=lambda: clock[0]
        )
        one, twin, former = (Directory(node, clock=lambda: clock[0]) for _ in range(3))
        assert await former.announce(record(identity.peer_id))  # and it was killed
        await former.close()
        clock[0] += 1
        await one.snapshot(CHECKPOINT)
        for _ in range(3):
            assert await one.announce(record(identity.peer_id))
            await one.snapshot(CHECKPOINT)
            clock[0] += 1
        assert not caplog.records
        for _ in range(3):
            addresses = ("/ip4/203.0.113.7/tcp/31330",)
            assert await twin.announce(record(identity.peer_id, addresses=addresses))
            await one.snapshot(CHECKPOINT)
            clock[0] += 1
        (said,) = caplog.records
        assert "203.0.113.7" in said.getMessage() and "--identity" in said.getMessage()
        await one.close()
        await twin.close()

    with caplog.at_level(logging.WARNING):
        run(story())
