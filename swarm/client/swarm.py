"""Our membership in one swarm: the network, the list of servers, and who gets which message."""

import asyncio
import json
import logging
import random
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from swarm.client.agreement import Agreement
from swarm.client.routes import ClientRouter
from swarm.client.settings import ClientSettings
from swarm.client.target import Target
from swarm.client.troubles import Troubles
from swarm.errors import PeerError, PeerTimeoutError, SwarmError
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Message, StatusReply, StatusRequest
from swarm.spans import PeerId
from swarm.wire.identity import Identity
from swarm.wire.links import Links
from swarm.wire.shared_limits import link_memory_bytes, machine_memory_bytes

if TYPE_CHECKING:
    from swarm.dht.directory import Directory, DirectoryNode, ModelEntry
    from swarm.dht.records import ServerRecord
    from swarm.wire.network import SwarmNetwork

logger = logging.getLogger(__name__)

TICK_S = 0.1
"""How often sessions look at their deadlines and their links."""
CLOSE_TIMEOUT_S = 5.0
"""For each part that `Swarm.close` ends. By themselves links take 2 s at most, the directory's node
3 s and the daemon about 4 s, so this is for what hangs."""
CLOSED_AFTER_S = 3 * CLOSE_TIMEOUT_S + 1.0
"""`Swarm.close` has ended by then. Whoever ends its loop waits so long: closing that is cut off
leaves the daemon running, which is ended last."""
RATED_BYTES = 1 << 18
"""A link that has sent less does not know how fast its way is."""
UNANSWERED_S = 1.5
"""A server that lets a ping wait so long is doubted, well before its link is given up."""


class Listener(Protocol):
    """A session, or its opening, in the loop's thread."""

    def received(self, sender: PeerId, message: Message, payload: memoryview) -> None: ...
    def peer_lost(self, peer: PeerId, reason: str) -> None: ...
    def tick(self, now: float) -> None: ...


@dataclass
class _Snapshot:
    """The servers of one checkpoint as they were found at `time`."""

    time: float
    records: "tuple[ServerRecord, ...]"


class Swarm:
    """Everything here runs in the client's event loop. Make one with `join`."""

    def __init__(self, network: "SwarmNetwork", settings: ClientSettings) -> None:
        self.identity: Identity = network.identity
        self.settings = settings
        self.troubles = Troubles()
        """Of all sessions: which servers failed lately."""
        self._network = network
        self._links = Links(
            network,
            self,
            grace_s=settings.link_grace_s,
            memory_bytes=link_memory_bytes(machine_memory_bytes() // 2),
        )
        self._node: DirectoryNode | None = None
        self._directory: Directory | None = None
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[bytes, Listener] = {}
        self._snapshots: dict[str, _Snapshot] = {}
        self._lookups: dict[str, asyncio.Task[tuple[ServerRecord, ...]]] = {}
        self._routers: dict[str, ClientRouter] = {}
        self._agreement = Agreement()
        self._requests: dict[int, tuple[PeerId, asyncio.Future[StatusReply]]] = {}
        """Who was asked for its status, by the number of the question."""
        self._request_numbers = count(1)
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def join(
        cls,
        initial_peers: Sequence[str],
        settings: ClientSettings,
        identity: Identity | None = None,
    ) -> "Swarm":
        """Raises AddressError, UnreachablePeerError or DaemonError."""
        from swarm.dht.directory import Directory
        from swarm.dht.joining import join_directory
        from swarm.wire.entrance import enter

        network = await enter(
            identity or Identity.create(),
            initial_peers=initial_peers,
            client_only=True,
            startup_timeout_s=settings.startup_timeout_s,
        )
        swarm = cls(network, settings)
        try:
            await swarm._links.start()
            swarm._node = await join_directory(network)
            swarm._directory = Directory(swarm._node)
        except BaseException:
            await swarm.close()
            raise
        return swarm

    async def close(self) -> None:
        """Sessions that are still open are closed; the daemon ends. It takes less than
        `CLOSED_AFTER_S`, whatever hangs, and goes on when who waits for it is cancelled."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close(), name="leaving the swarm")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._timer.cancel()
        self.on_link_lost(self.identity.peer_id, "the client left the swarm")
        lookups = list(self._lookups.values())
        for lookup in lookups:
            lookup.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)
        for closing in (self._links, self._node, self._network):
            if closing is not None:
                try:
                    async with asyncio.timeout(CLOSE_TIMEOUT_S):
                        await closing.close()
                except TimeoutError:
                    logger.warning("%s was not closed in time", type(closing).__name__)
                except Exception:  # the others are closed all the same
                    logger.exception("%s was not closed in order", type(closing).__name__)

    # ---- who serves what

    async def servers(
        self, checkpoint: str, max_age_s: float | None = None
    ) -> "tuple[ServerRecord, ...]":
        """The servers of a checkpoint, from a list of at most `max_age_s`.

        By default an older list is good enough and is looked up anew behind the caller's back.
        Raises PeerTimeoutError.
        """
        known = self._snapshots.get(checkpoint)
        now = self._loop.time()
        if known is None or (max_age_s is not None and now - known.time > max_age_s):
            return await asyncio.shield(self._look_up(checkpoint))
        if now - known.time > self.settings.directory_refresh_s:
            self._look_up(checkpoint)
        return known.records

    def _look_up(self, checkpoint: str) -> "asyncio.Task[tuple[ServerRecord, ...]]":
        lookup = self._lookups.get(checkpoint)
        if lookup is None:
            lookup = self._loop.create_task(self._find_servers(checkpoint))
            self._lookups[checkpoint] = lookup
            lookup.add_done_callback(lambda done: self._looked_up(checkpoint, done))
        return lookup

    def _looked_up(self, checkpoint: str, done: "asyncio.Task[Any]") -> None:
        del self._lookups[checkpoint]
        if done.cancelled() or (error := done.exception()) is None:
            return
        if isinstance(error, SwarmError):
            logger.info("the servers of %s were not looked up: %s", checkpoint, error)
        else:  # nobody else may hear of it: it is done behind the caller's back
            logger.error("looking up the servers of %s failed", checkpoint, exc_info=error)

    async def _find_servers(self, checkpoint: str) -> "tuple[ServerRecord, ...]":
        assert self._directory is not None
        records = tuple(await self._directory.snapshot(checkpoint))
        self._snapshots[checkpoint] = _Snapshot(self._loop.time(), records)
        known = (record for found in self._snapshots.values() for record in found.records)
        self._agreement.keep({record.peer for record in known})
        if (router := self._routers.get(checkpoint)) is not None:
            router.learn(records)
        return records

    def doubted(self, records: "Sequence[ServerRecord]", *, tell: bool = False) -> set[PeerId]:
        """Those of a checkpoint's servers that announce other contents of a block than others do
        (`swarm.client.agreement`): to be used where nobody else serves their blocks. `tell`: they
        are named in the log, each once."""
        for record in records:
            if (address := self._links.address(record.peer)) is not None:
                self._agreement.reached(record.peer, address)
        return self._agreement.doubted(records, tell=tell)

    async def models(self) -> "Sequence[ModelEntry]":
        """What is served at all in this swarm."""
        assert self._directory is not None
        return await self._directory.models()

    def known_servers(self, checkpoint: str) -> "tuple[ServerRecord, ...]":
        """The servers as they were last looked up; it is done anew behind the caller's back."""
        known = self._snapshots.get(checkpoint)
        if known is None or self.time - known.time > self.settings.directory_refresh_s:
            self._look_up(checkpoint)
        return () if known is None else known.records

    def router(self, target: Target) -> ClientRouter:
        """Chooses the routes of all our sessions over a checkpoint's servers."""
        router = self._routers.get(target.checkpoint)
        if router is None:
            router = self._routers[target.checkpoint] = ClientRouter(
                self.identity.peer_id,
                random.Random(),
                lambda: self.time,
                activation_bytes=target.activation_bytes,
                mix_numerics=self.settings.mix_numerics,
            )
            router.learn(self.known_servers(target.checkpoint))
        return router

    # ---- connections

    async def connect(self, record: "ServerRecord", timeout_s: float) -> None:
        """Have a link to this server; PeerError says why there is none."""
        self._network.add_addresses(record.peer, record.addresses)
        await self._links.connect(record.peer, timeout_s)

    async def connect_all(
        self, records: Iterable["ServerRecord"], timeout_s: float
    ) -> dict[PeerId, PeerError]:
        """Connect to all at once; the peers where it failed, and why."""
        wanted = list(records)
        results = await asyncio.gather(
            *(self.connect(record, timeout_s) for record in wanted), return_exceptions=True
        )
        failed: dict[PeerId, PeerError] = {}
        for record, result in zip(wanted, results, strict=True):
            if isinstance(result, PeerError):
                failed[record.peer] = result
            elif isinstance(result, BaseException):
                raise result
        return failed

    def hears(self, peer: PeerId) -> bool:
        """Whether there is a link to the peer, and something comes when we ask."""
        link = self._links.stats(peer)
        return link is not None and link.up and link.unanswered_s < UNANSWERED_S

    def has_link(self, peer: PeerId) -> bool:
        """Also one that is down and may come back."""
        return self._links.stats(peer) is not None

    def in_trouble(self) -> set[PeerId]:
        """The servers that failed lately, and those that are silent now: better try others."""
        silent = {peer for peer in self._links.peers() if not self.hears(peer)}
        suspected = self.troubles.suspected(self.time, self._heard_s)
        return silent | suspected | self._links.down() | self.troubles.left_out(self.time)

    def _heard_s(self, peer: PeerId) -> float | None:
        link = self._links.stats(peer)
        return None if link is None else link.heard_s

    def rtt_s(self, peers: Collection[PeerId]) -> dict[PeerId, float]:
        """The measured round trips to those of `peers` that are connected."""
        found: dict[PeerId, float] = {}
        for peer in peers:
            stats = self._links.stats(peer)
            if stats is not None and stats.rtt_s is not None:
                found[peer] = stats.rtt_s
        return found

    def rate_bytes_per_s(self, peer: PeerId) -> float | None:
        """What the way to a connected peer delivers; None: too little was sent to know."""
        stats = self._links.stats(peer)
        if stats is None or stats.bytes_sent < RATED_BYTES:
            return None
        return stats.rate_bytes_per_s

    async def ask_status(self, record: "ServerRecord", timeout_s: float) -> dict[str, Any]:
        """What the server says of itself. Raises PeerError."""
        number = next(self._request_numbers)
        answer: asyncio.Future[StatusReply] = self._loop.create_future()
        self._requests[number] = record.peer, answer
        try:
            async with asyncio.timeout(timeout_s):
                await self.connect(record, timeout_s)
                self.send(record.peer, StatusRequest(number))
                reply = await answer
        except TimeoutError as error:
            if isinstance(error, PeerError):
                raise
            raise PeerTimeoutError(
                f"{record.peer} did not tell its status within {timeout_s:g} s", record.peer
            ) from None
        finally:
            del self._requests[number]
        try:
            status = json.loads(reply.status)
        except (ValueError, RecursionError):
            status = None
        if not isinstance(status, dict):
            raise PeerError(f"{record.peer} sent a status that is not a JSON object", record.peer)
        return status

    # ---- messages

    def attach(self, session: bytes, listener: Listener) -> None:
        """From now on what concerns `session` goes to `listener`."""
        self._listeners[session] = listener

    def detach(self, session: bytes) -> None:
        self._listeners.pop(session, None)

    def send(
        self,
        peer: PeerId,
        message: Message,
        payload: Sequence[memoryview] = (),
        service_class: ServiceClass = ServiceClass.CONTROL,
        session: bytes = b"",
    ) -> None:
        """Raises UnreachablePeerError or LinkFullError."""
        self._links.send(peer, message, payload, service_class, session, self.identity.peer_id)

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> bool:
        """True: nobody waits for it."""
        if isinstance(message, StatusReply):
            asked, answer = self._requests.get(message.request, (None, None))
            if answer is not None and asked == peer and not answer.done():
                answer.set_result(message)
            return False
        listener = self._listeners.get(getattr(message, "session", b""))
        if listener is not None:
            listener.received(peer, message, payload)
        return listener is None

    def on_link_lost(self, peer: PeerId, reason: str) -> None:
        for listener in list(self._listeners.values()):
            try:
                listener.peer_lost(peer, reason)
            except Exception:  # the others are told all the same
                logger.exception("a session was not told that %s is lost", peer)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        now = self._loop.time()
        for listener in list(self._listeners.values()):
            try:
                listener.tick(now)
            except Exception:
                logger.exception("a session's deadlines were not looked at")

    @property
    def time(self) -> float:
        return self._loop.time()


async def close_quietly(swarm: Swarm) -> None:
    """For tasks that nobody awaits."""
    with suppress(asyncio.CancelledError):
        try:
            await swarm.close()
        except Exception:
            logger.exception("the swarm was not left in order")
