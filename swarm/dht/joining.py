"""Becoming a member of the directory of whatever network one is in."""

from swarm.dht.directory import DirectoryNode
from swarm.dht.memory import MemoryDirectoryNode
from swarm.dht.node import DhtNode
from swarm.wire.entrance import MemoryMember
from swarm.wire.libp2p import Libp2pNetwork
from swarm.wire.network import SwarmNetwork


async def join_directory(network: SwarmNetwork) -> DirectoryNode:
    """A node of the DHT over libp2p, or its stand-in in memory.

    Raises UnreachablePeerError or UsageError, as `DhtNode.create` does.
    """
    match network:
        case MemoryMember():
            return MemoryDirectoryNode(network)
        case Libp2pNetwork():
            return await DhtNode.create(network)
    raise TypeError(f"{type(network).__name__} has no directory")
