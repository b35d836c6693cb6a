"""A member of the swarm without blocks: others join by its address, and it keeps the directory."""

import asyncio
import contextlib

from swarm.dht.node import DhtNode
from swarm.server import telling
from swarm.server.config import Listening
from swarm.server.events import EventSink, ServerEvent, log_event, unfailing
from swarm.server.identity_claim import claim_identity
from swarm.server.reachability import check_announced, join_addresses
from swarm.wire.libp2p import Libp2pNetwork


class BootstrapPeer:
    """Runs from `start` to `stop`; serves nothing but the directory."""

    def __init__(self, config: Listening, *, on_event: EventSink = log_event) -> None:
        self.config = config
        self._tell = unfailing(on_event)
        self._stack = contextlib.AsyncExitStack()
        self._network: Libp2pNetwork | None = None
        self._stopped = False

    @property
    def addresses(self) -> list[str]:
        """All whole addresses that others may try, best first."""
        if self._network is None:
            raise RuntimeError("the peer is not running; await start() first")
        return join_addresses(self._network.addresses, self.config.announce, self._network.peer_id)

    async def start(self) -> None:
        """Returns when others can join. Raises `UsageError`, `UnreachablePeerError` or
        `DaemonError`; everything is closed again then."""
        try:
            # Not in a thread: who is cancelled while it waits would keep the identity locked.
            claimed = claim_identity(self.config.identity, "dht")
            self._stack.callback(claimed.release)
            check_announced(self.config.announce, claimed.identity.peer_id)
            if claimed.sibling > 1:
                self._tell(telling.sibling_event(claimed.sibling - 1, str(claimed.path)))
            network = await Libp2pNetwork.create(
                claimed.identity,
                listen=self.config.listen,
                initial_peers=self.config.peers,
                announce=self.config.announce,
            )
            self._stack.push_async_callback(network.close)
            node = await DhtNode.create(network)
            self._stack.push_async_callback(node.close)
            self._network = network
        except BaseException:
            await self._stack.aclose()
            raise
        self.tell_now()
        for advice in telling.forwarding_events(self.config, network.addresses):
            self._tell(advice)

    def tell_now(self) -> None:
        """Tells where others join, once it runs."""
        if self._network is not None:
            command = f"swarm-server --peers {self.addresses[0]}"
            peer = self._network.peer_id
            self._tell(telling.listening_event(self.addresses, peer, command))

    async def stop(self, *, drain: bool = True) -> None:
        """Leaves; nobody is served, so there is nothing to drain. May be called again."""
        if self._stopped:
            return
        self._stopped = True
        await self._stack.aclose()
        self._tell(ServerEvent("stopped", "stopped"))

    async def failed(self) -> None:
        """Waits for ever: the network mends itself."""
        await asyncio.get_running_loop().create_future()
