"""A client that leaves its swarm closes everything, also when something hangs."""

import asyncio

from swarm.client.settings import ClientSettings
from swarm.client.swarm import CLOSED_AFTER_S, Swarm
from swarm.wire.entrance import MemoryMember
from swarm.wire.identity import Identity
from swarm.wire.memory import MemoryNetworkHub
from swarm.wire.virtual_time import run


class Part:
    """Of a swarm: takes so long to close."""

    def __init__(self, takes_s):
        self.takes_s = takes_s
        self.asked = self.closed = False

    async def close(self):
        self.asked = True
        await asyncio.sleep(self.takes_s)
        self.closed = True


def swarm_of(parts):
    network = MemoryMember(MemoryNetworkHub(), Identity.create(), listens=False)
    swarm = Swarm(network, ClientSettings())
    swarm._links, swarm._node, swarm._network = parts
    return swarm


def test_nobody_stops_waiting_before_the_daemon_was_told_to_end():
    async def main():
        parts = [Part(3600.0) for _ in range(3)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        await swarm_of(parts).close()
        assert all(part.asked for part in parts)
        assert loop.time() - began < CLOSED_AFTER_S

    run(main())


def test_who_is_cancelled_while_it_leaves_has_left():
    """As when Ctrl-C comes meanwhile: the daemon would stay."""

    async def main():
        parts = [Part(1.0) for _ in range(3)]
        swarm = swarm_of(parts)
        leaving = asyncio.ensure_future(swarm.close())
        await asyncio.sleep(0.5)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert leaving.cancelled()
        await swarm.close()
        assert all(part.closed for part in parts)

    run(main())
