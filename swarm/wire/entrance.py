"""How a server or a client enters a network: by addresses, the real one or one in memory."""

import asyncio
from collections.abc import Iterable, Sequence

from swarm.errors import AddressError, UnreachablePeerError, UsageError
from swarm.spans import PeerId
from swarm.wire.addresses import is_in_memory, split_peer
from swarm.wire.identity import Identity
from swarm.wire.memory import MemoryNetwork, MemoryNetworkHub, hub_at
from swarm.wire.network import SwarmNetwork


class MemoryMember(MemoryNetwork):
    """A server's or a client's place in a network in memory; a `SwarmNetwork`."""

    def __init__(self, hub: MemoryNetworkHub, identity: Identity, *, listens: bool) -> None:
        super().__init__(hub, identity.peer_id, listens)
        self._identity = identity
        hub.enter(self)

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def client_only(self) -> bool:
        return not self.addresses

    def add_addresses(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """The hub knows where everybody is."""


async def enter(
    identity: Identity,
    *,
    listen: Sequence[str] = (),
    initial_peers: Sequence[str] = (),
    announce: Sequence[str] = (),
    client_only: bool = False,
    startup_timeout_s: float = 30.0,
) -> SwarmNetwork:
    """The network that `listen` and `initial_peers` are addresses of.

    `/memory/..` addresses lead to the `MemoryNetworkHub` of this process with that address, all
    others to libp2p, whose options the arguments are (`Libp2pNetwork.create`). Raises AddressError,
    UnreachablePeerError or DaemonError.
    """
    addresses = [*([] if client_only else listen), *initial_peers, *announce]
    if not any(map(is_in_memory, addresses)):
        from swarm.wire.libp2p import DEFAULT_LISTEN, Libp2pNetwork

        return await Libp2pNetwork.create(
            identity,
            listen=listen or DEFAULT_LISTEN,
            initial_peers=initial_peers,
            announce=announce,
            client_only=client_only,
            startup_timeout_s=startup_timeout_s,
        )
    hub = _common_hub(addresses)
    others = [split_peer(one)[1] for one in initial_peers]
    others = [peer for peer in others if peer != identity.peer_id]
    if others and not any(_answers(hub, peer) for peer in others):
        raise UnreachablePeerError(
            f"cannot reach {', '.join(initial_peers)} in memory; is that server running?",
            peer=others[0],
        )
    return MemoryMember(hub, identity, listens=not client_only)


def _common_hub(addresses: Sequence[str]) -> MemoryNetworkHub:
    names = {one.partition("/p2p/")[0] if is_in_memory(one) else "" for one in addresses}
    if len(names) > 1:
        raise AddressError(
            f"{', '.join(addresses)} are addresses of several networks; one that is in memory "
            "(/memory/..) has no way to any other"
        )
    hub = hub_at(names.pop())
    if hub is None:
        raise UnreachablePeerError(
            f"{addresses[0]} is not a network in the memory of this process; begin one with "
            "swarm.testing.LocalSwarm"
        )
    if hub.loop is None:
        hub.loop = asyncio.get_running_loop()
    if hub.loop is not asyncio.get_running_loop():
        raise UsageError(
            f"{hub.address} belongs to another event loop; run the servers of one network in "
            "memory in one loop, that of swarm.testing.LocalSwarm"
        )
    return hub


def _answers(hub: MemoryNetworkHub, peer: PeerId) -> bool:
    return hub.listener(peer) is not None and not hub.is_isolated(peer)
