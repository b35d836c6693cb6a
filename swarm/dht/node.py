"""Our member of the DHT: hivemind's Kademlia node in our own event loop, over our libp2p daemon."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from swarm.dht.protocol_rules import limited_find, limited_store, skip_what_is_bad
from swarm.dht.source_limits import SourceLimits, find_limits
from swarm.errors import (
    DaemonError,
    PeerTimeoutError,
    UnreachablePeerError,
    UsageError,
)
from swarm.spans import PeerId
from swarm.wire.addresses import split_peer
from swarm.wire.libp2p import Libp2pNetwork

if TYPE_CHECKING:
    from hivemind.dht.node import DHTNode

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 3.0
"""For one answer of one peer."""
STORE_TIMEOUT_S = 12.0
GET_TIMEOUT_S = 12.0
JOIN_TIMEOUT_S = 12.0
REJOIN_EVERY_S = 30.0
REJOIN_PEERS = 4
BLACKLIST_S = 5.0
_HANDLERS = "DHTProtocol."
_STORE_HANDLER = _HANDLERS + "rpc_store"
_FIND_HANDLER = _HANDLERS + "rpc_find"
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 15.0

Found = dict[str, tuple[bytes, float]]
"""Peer id -> (its value, the expiration as Unix time)."""


class DhtNode:
    """Stores and finds signed values; see `swarm.dht.directory` for what they say.

    When the libp2p daemon was rebuilt, a new node with the same place in the DHT and the same
    stored records takes over, and the callbacks in `on_rebuilt` are awaited.
    """

    def __init__(self, network: Libp2pNetwork, initial_peers: list[str]) -> None:
        """Use `create`."""
        self.network = network
        self.on_rebuilt: list[Callable[[], Awaitable[None]]] = []
        self._initial_peers = initial_peers
        self._node: DHTNode | None = None
        self._limits = SourceLimits()
        self._find_limits = find_limits()
        self._keeper: asyncio.Task[None] | None = None
        self._rebuilder: asyncio.Task[None] | None = None

    @classmethod
    async def create(
        cls, network: Libp2pNetwork, initial_peers: Sequence[str] | None = None
    ) -> "DhtNode":
        """Joins the DHT by the initial peers (default: those that the network was joined by).

        A client-only network asks and stores, and keeps nothing for others.

        Raises UnreachablePeerError when no initial peer answers or none can reach us, UsageError
        when our clock differs too much from theirs, and DaemonError.
        """
        peers = network.bootstrap_peers() if initial_peers is None else list(initial_peers)
        node = cls(network, [one for one in peers if split_peer(one)[1] != network.peer_id])
        try:
            node._node = await node._make(None)
        except TimeoutError as error:
            raise DaemonError(
                f"our libp2p daemon did not answer within {CALL_TIMEOUT_S:.0f} s; is the machine "
                "overloaded? Try again"
            ) from error
        try:
            await node._join(node._node)
        except BaseException:
            await node.close()
            raise
        network.on_rebuilt.append(node._rebuild)
        node._keeper = asyncio.create_task(node._keep_joined(), name="dht keeper")
        return node

    async def store(self, values: dict[str, bytes], expiration: float) -> bool:
        """Stores each sealed value under (key, our peer id) until `expiration` (Unix time).

        False: for some key nobody took it (or all have a newer one). Raises PeerTimeoutError.
        """
        keys = list(values)
        try:
            async with asyncio.timeout(STORE_TIMEOUT_S):
                stored = await self._running().store_many(
                    keys,
                    [values[key] for key in keys],
                    expiration,
                    subkeys=[self.network.peer_id] * len(keys),
                )
        except TimeoutError as error:
            raise PeerTimeoutError(
                f"the directory did not store our record within {STORE_TIMEOUT_S:.0f} s"
            ) from error
        return all(stored.values())

    async def get_many(self, keys: Collection[str]) -> dict[str, Found]:
        """What peers have stored under `keys`: the newest value of each peer that can be found.

        Keys that could not be searched to the end in time are left out with a log line; raises
        PeerTimeoutError when that is so for all of them.
        """
        searches = await self._running().get_many(
            list(keys), sufficient_expiration_time=float("inf"), return_futures=True
        )
        try:
            await asyncio.wait(searches.values(), timeout=GET_TIMEOUT_S)
            late = [key for key, search in searches.items() if not search.done()]
        finally:
            for search in searches.values():
                search.cancel()
        if late:
            logger.warning("%d of %d directory keys did not answer", len(late), len(searches))
        if len(late) == len(searches):
            raise PeerTimeoutError(
                f"the directory did not answer within {GET_TIMEOUT_S:.0f} s; "
                "are the peers that you joined by still running?"
            )
        return {
            key: _found(search.result())
            for key, search in searches.items()
            if search.done() and not search.cancelled()
        }

    async def ping(self, peer: PeerId, timeout_s: float) -> float:
        """The round trip of a question that costs nothing, in seconds; the lesser of two, for the
        first may have to connect. Raises UnreachablePeerError, or PeerTimeoutError."""
        loop = asyncio.get_running_loop()
        least_s = float("inf")
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(2):
                    began = loop.time()
                    if not await self._ping(self._running(), peer, strict=False):
                        raise UnreachablePeerError(f"{peer} does not answer", peer)
                    least_s = min(least_s, loop.time() - began)
        except TimeoutError as error:
            raise PeerTimeoutError(f"{peer} did not answer in {timeout_s:g} s", peer) from error
        return least_s

    async def close(self) -> None:
        """Leaves the DHT. The network is closed by whoever made it; do so after this."""
        if self._rebuild in self.network.on_rebuilt:
            self.network.on_rebuilt.remove(self._rebuild)
        tasks = [task for task in (self._keeper, self._rebuilder) if task is not None]
        self._keeper = self._rebuilder = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        node, self._node = self._node, None
        if node is not None:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await node.shutdown()
            except (TimeoutError, OSError) as error:
                logger.info("the DHT node was left without goodbye: %r", error)

    # ---- joining

    async def _make(self, before: "DHTNode | None") -> "DHTNode":
        """A node that knows nobody yet; with the place and the records of the one before."""
        from hivemind.dht.node import DHTNode

        from swarm.dht.storage import BoundedStorage
        from swarm.dht.validator import SwarmRecordValidator

        p2p = self.network.p2p
        async with asyncio.timeout(CALL_TIMEOUT_S):
            node = await DHTNode.create(
                p2p=p2p,
                node_id=before.node_id if before is not None else None,
                wait_timeout=CALL_TIMEOUT_S,
                cache_locally=False,
                cache_nearest=0,
                cache_on_store=False,
                cache_refresh_before_expiry=0,
                reuse_get_requests=False,
                blacklist_time=BLACKLIST_S,
                backoff_rate=1.0,
                client_mode=self.network.client_only,
                record_validator=SwarmRecordValidator(),
            )
        protocol = node.protocol
        protocol.storage = before.protocol.storage if before is not None else BoundedStorage()
        protocol.cache = BoundedStorage()
        skip_what_is_bad(protocol)
        handlers = p2p._client.control.unary_handlers
        if _STORE_HANDLER in handlers:
            handlers[_STORE_HANDLER] = limited_store(
                handlers[_STORE_HANDLER],
                protocol,
                lambda *request: self._limits.allow(*request),
                self.network.peer_id,
            )
            handlers[_FIND_HANDLER] = limited_find(
                handlers[_FIND_HANDLER],
                lambda *request: self._find_limits.allow(*request),
                self.network.peer_id,
            )
        return node

    async def _join(self, node: "DHTNode") -> None:
        if not self._initial_peers:
            return
        from hivemind.dht.protocol import ValidationError

        peers = {split_peer(address)[1] for address in self._initial_peers}
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                answers = await asyncio.gather(
                    *(self._ping(node, peer, strict=True) for peer in peers),
                    return_exceptions=True,
                )
        except TimeoutError:
            answers = []
        if any(not isinstance(answer, BaseException) and answer for answer in answers):
            await self._look_around(node)
            return
        where = ", ".join(self._initial_peers)
        for answer in answers:
            if isinstance(answer, ValidationError) and "time" in str(answer):
                raise UsageError(
                    f"this machine's clock and that of {where} differ by more than 3 s; "
                    "set the clock (for instance with NTP) and try again"
                ) from answer
            if isinstance(answer, ValidationError):
                raise UnreachablePeerError(
                    f"{where} answers, but cannot reach this machine at "
                    f"{', '.join(self.network.addresses)}; open that port in the firewall or the "
                    "router, or announce the address that others see"
                ) from answer
        raise UnreachablePeerError(
            f"{where} can be reached, but does not answer as a member of a swarm's directory; "
            "is it a swarm-server or swarm-dht of this version?"
        )

    @staticmethod
    async def _ping(node: "DHTNode", peer: PeerId, *, strict: bool) -> Any:
        from hivemind.p2p import PeerID

        return await node.protocol.call_ping(
            PeerID.from_base58(peer), validate=strict, strict=strict
        )

    async def _rebuild(self) -> None:
        """The daemon is new: so are the handlers that it must know, and our connections.

        Only begins: the daemon may end again meanwhile, and whoever watches it must not wait.
        """
        if self._rebuilder is not None:
            self._rebuilder.cancel()
            await asyncio.gather(self._rebuilder, return_exceptions=True)
        self._rebuilder = asyncio.create_task(self._rebuild_at_last(), name="dht rebuilder")

    async def _rebuild_at_last(self) -> None:
        before = self._node
        if before is not None:
            before.is_alive = False
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                node = await self._make(before)
                break
            except Exception:
                logger.warning("the DHT node cannot be rebuilt yet; trying again", exc_info=True)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            await self._forget_handlers()
        self._node = node
        try:
            await self._meet(node, self._known_addresses())
        except Exception:  # the others are looked for again; what we had stored cannot wait
            logger.exception("the peers of the directory were not met again")
        for callback in list(self.on_rebuilt):
            try:
                await callback()
            except Exception:
                logger.exception("a callback failed after the DHT node was rebuilt")

    async def _forget_handlers(self) -> None:
        """What a node that was half made left with the daemon, which takes no handler twice."""
        try:
            control = self.network.p2p._client.control
        except DaemonError:
            return
        for name in [name for name in control.unary_handlers if name.startswith(_HANDLERS)]:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await control.remove_unary_handler(name)
            except Exception as error:
                logger.info("the daemon did not know the handler %s: %r", name, error)
            control.unary_handlers.pop(name, None)

    async def _keep_joined(self) -> None:
        """hivemind drops every peer that once fails to answer, for good; after an outage of the
        network nobody would know anybody. So those that were known are asked again now and then."""
        while True:
            await asyncio.sleep(REJOIN_EVERY_S * random.uniform(0.75, 1.25))
            node = self._node
            if node is None:
                continue
            known = {str(peer) for peer in node.protocol.routing_table.peer_id_to_uid}
            lost = [
                address
                for address in self._known_addresses()
                if split_peer(address)[1] not in known
            ]
            try:
                await self._meet(node, random.sample(lost, min(REJOIN_PEERS, len(lost))))
            except Exception:
                logger.exception("looking for lost peers of the directory failed")

    async def _meet(self, node: "DHTNode", addresses: Sequence[str]) -> None:
        async def meet(address: str) -> None:
            if await self.network.connect(address, CALL_TIMEOUT_S):
                await self._ping(node, split_peer(address)[1], strict=False)

        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await asyncio.gather(*map(meet, addresses))
        except TimeoutError:
            logger.info("some peers of the directory do not answer")
        if addresses:
            await self._look_around(node)

    @staticmethod
    async def _look_around(node: "DHTNode") -> None:
        """Learns of the peers that are nearest to our own place."""
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await node.find_nearest_nodes([node.node_id])
        except TimeoutError:
            logger.info("not all neighbours in the directory answer")

    def _known_addresses(self) -> list[str]:
        return sorted({*self._initial_peers, *self.network.bootstrap_peers()})

    def _running(self) -> "DHTNode":
        if self._node is None:
            raise DaemonError("this member of the DHT is closed")
        return self._node


def _found(result: Any) -> Found:
    if result is None or not isinstance(result.value, dict):
        return {}
    return {
        peer: (item.value, float(item.expiration_time))
        for peer, item in result.value.items()
        if isinstance(peer, str) and isinstance(item.value, bytes)
    }
