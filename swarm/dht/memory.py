"""The directory of a network in memory: the DHT's records and rules without the DHT.

What is stored is checked as the DHT's peers check it, and what is read is checked again by
`swarm.dht.directory`, so signatures, expirations and replacements are those of the real one.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from weakref import WeakKeyDictionary

from swarm.dht.node import Found
from swarm.dht.records import may_live
from swarm.dht.signing import check, dht_key_id
from swarm.errors import PeerTimeoutError, RecordError
from swarm.spans import PeerId
from swarm.wire.entrance import MemoryMember
from swarm.wire.memory import MemoryNetworkHub

_stored: "WeakKeyDictionary[MemoryNetworkHub, dict[str, Found]]" = WeakKeyDictionary()
"""What all peers of each network keep together."""


class MemoryDirectoryNode:
    """Stores and finds signed values, as `DhtNode` does; a call takes one round trip.

    All peers of the network share what is stored, unless they are isolated.
    """

    def __init__(self, network: MemoryMember, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix time in seconds."""
        self.network = network
        self.on_rebuilt: list[Callable[[], Awaitable[None]]] = []
        self._records = _stored.setdefault(network.hub, {})
        self._clock = clock

    async def store(self, values: dict[str, bytes], expiration: float) -> bool:
        """Stores each sealed value under (key, our peer id) until `expiration` (Unix time).

        False: not sound, or there is a newer one. Raises PeerTimeoutError for a peer that is cut
        off.
        """
        await self._travel()
        # All of them are tried: one that is refused keeps no other out.
        taken = [self._take(key, value, expiration) for key, value in values.items()]
        return all(taken)

    async def get_many(self, keys: Collection[str]) -> dict[str, Found]:
        """What is stored under `keys`: a value of each peer, with its expiration.

        Raises PeerTimeoutError for a peer that is cut off.
        """
        await self._travel()
        now = self._clock()
        found: dict[str, Found] = {}
        for key in keys:
            held = self._records.get(key, {})
            found[key] = {peer: item for peer, item in held.items() if item[1] > now}
        return found

    async def ping(self, peer: PeerId, timeout_s: float) -> float:
        """The round trip of a stream that is opened, in seconds. Raises UnreachablePeerError."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        stream = await self.network.dial(peer, timeout_s)
        stream.close()
        return loop.time() - began

    async def close(self) -> None:
        """Leaves; what was stored stays until it expires."""

    def _take(self, key: str, value: bytes, expiration: float) -> bool:
        now, peer = self._clock(), self.network.peer_id
        if not may_live(expiration, now):
            return False
        try:
            check(dht_key_id(key), peer, value, expiration)
        except RecordError:
            return False
        held = self._records.setdefault(key, {})
        present = held.get(peer)
        if present is not None and may_live(present[1], now) and present[1] >= expiration:
            return present == (value, expiration)
        held[peer] = (value, expiration)
        return True

    async def _travel(self) -> None:
        hub = self.network.hub
        await asyncio.sleep(2 * hub.default_path.delay_s)
        if self.network.is_closed or hub.is_isolated(self.network.peer_id):
            raise PeerTimeoutError("the directory did not answer: we are cut off from the network")
