"""Members of the DHT that keep to no rules of ours."""

from typing import Any

from libp2p_peers import Peers

from swarm.dht.node import DhtNode


async def hostile_member(started: Peers, joined: DhtNode) -> Any:
    """A plain hivemind node: it checks nothing, and stores whatever we tell it to store."""
    from hivemind.dht.node import DHTNode

    network = await started.start(initial_peers=joined.network.addresses)
    return await DHTNode.create(
        p2p=network.p2p, initial_peers=joined.network.addresses, bootstrap_timeout=0
    )
