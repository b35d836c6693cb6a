"""Several libp2p peers in the test's process, and a check that they leave nothing behind."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from unittest import mock

import psutil

from swarm.dht.node import DhtNode
from swarm.wire.hivemind_setup import load_hivemind
from swarm.wire.identity import Identity
from swarm.wire.libp2p import Libp2pNetwork

DEADLINE_S = 120.0
"""Only so that a fault ends; nothing is decided by it."""
UNDER_WAY_S = 10.0
"""How long what was under way has to end."""


class Peers:
    """Networks and nodes that are closed at the end of a test, the last one first."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def start(self, identity: Identity | None = None, **options: Any) -> Libp2pNetwork:
        network = await Libp2pNetwork.create(identity or Identity.create(), **options)
        self._stack.push_async_callback(network.close)
        return network

    async def start_node(self, *joined: DhtNode, **options: Any) -> DhtNode:
        """A member of the DHT that `joined` are members of."""
        addresses = [address for one in joined for address in one.network.addresses]
        network = await self.start(initial_peers=addresses, **options)
        node = await DhtNode.create(network)
        self._stack.push_async_callback(node.close)
        return node


@asynccontextmanager
async def peers() -> AsyncIterator[Peers]:
    async with asyncio.timeout(DEADLINE_S), AsyncExitStack() as stack:
        yield Peers(stack)


def run_in_peace(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs it; fails if it leaves a task, a process, an open file or a temporary file.

    Tasks of hivemind that were under way get a few turns of the loop, and time, to end.
    """

    async def watched() -> None:
        await coroutine
        for _ in range(20):
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            _, left = await asyncio.wait(left, timeout=UNDER_WAY_S)
        assert not left, left

    load_hivemind()  # which keeps some files open
    asyncio.run(asyncio.sleep(0))
    process = psutil.Process()
    children, files = process.children(), process.num_fds()
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as folder:
        with mock.patch("tempfile.tempdir", folder):
            asyncio.run(watched())
        assert process.children() == children
        assert process.num_fds() == files
        assert os.listdir(folder) == []
