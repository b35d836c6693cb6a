"""All links of a process: who is dialled when, which stream wins, and when a link is lost."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from swarm.errors import (
    FramingError,
    LinkFullError,
    PeerError,
    UnreachablePeerError,
)
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.client_groups import ClientGroups
from swarm.sessions.messages import Message
from swarm.spans import PeerId
from swarm.wire.accepting import Accepting
from swarm.wire.connection import Connection
from swarm.wire.dialling import Dialling
from swarm.wire.fair_budget import FairBudget
from swarm.wire.frames import (
    MAX_UNFINISHED_BYTES,
    PROTOCOL_VERSION,
    Frame,
    FrameType,
    hello_version,
    unpack_hello,
)
from swarm.wire.link import Link
from swarm.wire.link_handler import LinkHandler
from swarm.wire.link_stats import LinkStats
from swarm.wire.link_waiters import LinkWaiters
from swarm.wire.network import Network
from swarm.wire.outgoing_message import Buffer
from swarm.wire.places import Places
from swarm.wire.refusals import other_version, refuse_version, turn_away, turned_away_by
from swarm.wire.shared_limits import MAX_LINK_MEMORY_BYTES, SharedLimits
from swarm.wire.upload_limit import UploadLimit
from swarm.wire.widening import Widening

logger = logging.getLogger(__name__)

MAX_REMEMBERED_CLIENTS = 10_000
CLOSE_S = 1.0
"""How long `close` waits for what is still to be written."""
SECOND_DIALLER_S = 0.5
"""How long the side that did not dial a broken stream leaves it to the other."""


class Links:
    """At most one link to each peer. Everything is called in the thread of the running loop."""

    def __init__(
        self,
        network: Network,
        handler: LinkHandler,
        *,
        grace_s: float = 10.0,
        hello_timeout_s: float = 5.0,
        dial_timeout_s: float = 10.0,
        max_outstanding_bytes: int = MAX_UNFINISHED_BYTES,
        memory_bytes: int = MAX_LINK_MEMORY_BYTES,
        max_links: int = 2048,
        max_streams_without_hello: int = 256,
        control_per_s: float = 200.0,
        upload: UploadLimit | None = None,
        groups: ClientGroups | None = None,
    ) -> None:
        """`grace_s`: how long a broken link is tried again before it is lost.
        `dial_timeout_s`: how long a peer is tried that `send` finds without a link.
        `max_outstanding_bytes`: of one link, waiting or not acknowledged.
        `memory_bytes`: what has come over all links of messages that have not ended; and as much
        again of what waits to be sent or is not acknowledged; never more than three times that,
        see `FairBudget`.
        `max_links`: that peers open; further ones are turned away, and of one group sooner.
        `max_streams_without_hello`: of all peers; likewise.
        `control_per_s`: pings and messages other than steps and outputs that a peer may send, with
        bursts of five seconds' worth; one that sends more is read more slowly.
        `upload`: what all links together may send; None: as fast as they can.
        `groups`: is told where peers are, and groups clients for what is sent in their name."""
        if not 0 < max_outstanding_bytes <= MAX_UNFINISHED_BYTES:
            raise ValueError(f"max_outstanding_bytes must be in 1..{MAX_UNFINISHED_BYTES}")
        self._network = network
        self._handler = handler
        self._grace_s = grace_s
        self._hello_timeout_s = hello_timeout_s
        self._dial_timeout_s = dial_timeout_s
        self._limits = SharedLimits(
            max_outstanding_bytes=max_outstanding_bytes,
            control_per_s=control_per_s,
            unfinished=FairBudget(memory_bytes, max_links),
            outstanding=FairBudget(memory_bytes, max_links),
            upload=upload,
            groups=groups or ClientGroups(),
        )
        self._accepting = Accepting(
            network.peer_id,
            hello_timeout_s,
            max_streams_without_hello,
            self._limits.groups,
            is_welcome=self._is_welcome,
            on_hello=self._hello_received,
        )
        self._links: dict[PeerId, Link] = {}
        self._dialling: dict[PeerId, Dialling] = {}
        self._widening = Widening(network, self._limits.groups, self._links)
        self._places: Places[PeerId] = Places(max_links)
        """Of links that peers have opened."""
        self._waiters = LinkWaiters()
        self._clients: dict[PeerId, None] = {}
        """Peers that said that they cannot be dialled."""
        self.accepted_streams = 0
        """That peers have opened and greeted on: so they can reach us."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    # ---- public

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._network.on_stream = self._accepting.accept

    def peers(self) -> list[PeerId]:
        """Those whose link is up."""
        return [peer for peer, link in self._links.items() if link.connection is not None]

    def down(self) -> set[PeerId]:
        """Those whose link was up and broke; it is being restored, or its grace time runs."""
        return {p for p, link in self._links.items() if link.connection is None and link.met}

    def is_client(self, peer: PeerId) -> bool:
        """Whether it has said that it cannot be dialled."""
        return peer in self._clients

    @property
    def memory_bytes(self) -> int:
        """What it was made with; who keeps messages until there is a link keeps within it, too."""
        return self._limits.outstanding.max_bytes

    def stats(self, peer: PeerId) -> LinkStats | None:
        """None if there is no link, neither up nor in its grace time."""
        link = self._links.get(peer)
        return link.stats() if link is not None else None

    def address(self, peer: PeerId) -> str | None:
        """Where the peer is, as a multiaddress, empty if unknown; None while its link is not up."""
        link = self._links.get(peer)
        return None if link is None or link.connection is None else link.connection.address

    async def connect(self, peer: PeerId, timeout_s: float) -> None:
        """Returns when the link is up and both hellos are exchanged.

        Raises UnreachablePeerError, ProtocolVersionError, FramingError, or PeerTimeoutError.
        """
        link = self._link(peer)
        if link.connection is not None:
            return
        self._dial(link, timeout_s)
        await self._waiters.wait(peer, timeout_s)

    def send(
        self,
        peer: PeerId,
        message: Message,
        payload: Sequence[Buffer] = (),
        service_class: ServiceClass = ServiceClass.CONTROL,
        session: bytes = b"",
        client: str = "",
    ) -> None:
        """Hands the message to the link; writes it at once if nothing is in its way.

        `payload` must not be changed until the peer has it. Without a link the peer is dialled,
        and `on_link_lost` follows if that fails. Messages of one `session` keep their order.

        Raises UnreachablePeerError if there is no link and the peer cannot be dialled, and
        LinkFullError if too much waits.
        """
        link = self._links.get(peer)
        if link is None:
            if peer in self._clients:
                raise UnreachablePeerError(
                    f"the link to the client {peer} is lost; only the client can open it again",
                    peer=peer,
                )
            link = self._link(peer)
            self._dial(link, self._dial_timeout_s)
        try:
            link.send(message, payload, service_class, session, client)
        except LinkFullError as error:
            raise LinkFullError(f"the link to {peer}: {error}", peer=peer) from None

    async def close(self) -> None:
        """Says goodbye to all peers; at most about a second. `on_link_lost` is not called."""
        if self._closed:
            return
        self._closed = True
        self._network.on_stream = None
        for dialling in list(self._dialling.values()):
            dialling.cancel()
        self._accepting.close()
        await self._widening.close()
        for peer in self._waiters.peers():
            self._waiters.settle(peer, UnreachablePeerError("the links are closed", peer=peer))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                for link in list(self._links.values()):
                    await link.written()
        for link in self._links.values():
            link.say_goodbye()
        self._links.clear()
        self._dialling.clear()

    # ---- links

    @property
    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("await start() first")
        return self._loop

    def _link(self, peer: PeerId) -> Link:
        if self._closed:
            raise UnreachablePeerError("the links are closed", peer=peer)
        if peer == self._network.peer_id:
            raise UnreachablePeerError(f"{peer} is this very peer", peer=peer)
        link = self._links.get(peer)
        if link is None:
            link = Link(peer, self._handler, self, self._running_loop, self._limits)
            self._links[peer] = link
        return link

    def link_broken(self, link: Link, reason: str) -> None:
        """The stream is gone: dial again if that is possible, for the grace time."""
        logger.info("the link to %s broke (%s); waiting %g s", link.peer, reason, self._grace_s)
        error = UnreachablePeerError(
            f"the link to {link.peer} broke ({reason}) and was not restored within "
            f"{self._grace_s:g} s",
            peer=link.peer,
        )
        self._dialling_of(link).start_grace(self._grace_s, error)
        if link.peer_dialable:
            self._dial(link, self._grace_s, 0.0 if link.dialled else SECOND_DIALLER_S)

    def link_lost(self, link: Link, reason: str) -> None:
        self._give_up(link, UnreachablePeerError(reason, peer=link.peer))

    def _give_up(self, link: Link, error: PeerError) -> None:
        """Forgets the link, and tells everybody."""
        if self._links.get(link.peer) is not link:
            return
        del self._links[link.peer]
        self._places.give_back(link.peer)
        was_used = link.met or not link.idle
        link.end()
        self._stop_dialling(link.peer)
        self._waiters.settle(link.peer, error)
        if was_used:
            self._tell_lost(link.peer, str(error))

    def _tell_lost(self, peer: PeerId, reason: str) -> None:
        logger.info("link lost: %s", reason)
        if self._closed:
            return
        try:
            self._handler.on_link_lost(peer, reason)
        except Exception:
            logger.exception("the loss of the link to %s was not handled", peer)

    # ---- dialling

    def _dial(self, link: Link, timeout_s: float, delay_s: float = 0.0) -> None:
        """The link is to be up within this time, or its grace time if that is longer."""
        dialling = self._dialling_of(link)
        dialling.extend(timeout_s)
        task = dialling.dial(delay_s)
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _dialling_of(self, link: Link) -> Dialling:
        dialling = self._dialling.get(link.peer)
        if dialling is None:
            dialling = self._dialling[link.peer] = Dialling(
                link,
                self._network,
                self._hello_timeout_s,
                on_hello=self._hello_received,
                on_failure=self._give_up,
                on_end=self._dialling_ended,
            )
        return dialling

    def _dialling_ended(self, dialling: Dialling) -> None:
        if self._dialling.get(dialling.link.peer) is dialling:
            del self._dialling[dialling.link.peer]

    def _stop_dialling(self, peer: PeerId) -> None:
        dialling = self._dialling.pop(peer, None)
        if dialling is not None:
            dialling.cancel()

    # ---- hello

    def _is_welcome(self, peer: PeerId, address: str) -> bool:
        """Whether we take a link that the peer opens from there."""
        group = self._limits.groups.group_at(peer, address)
        if peer in self._links or self._places.has_room(group):
            return True
        logger.info(
            "%s at %s is turned away: peers have opened %d links, and those of %s as many as one "
            "network may",
            peer,
            address,
            len(self._places),
            group[-1],
        )
        return False

    def _hello_received(self, connection: Connection, frame: Frame) -> None:
        """The first frame on a stream. Raises FramingError."""
        peer = connection.peer
        self._accepting.greeted(connection)
        if connection.dialled and frame.type == FrameType.BYE:
            self._not_to_be(connection, turned_away_by(peer))
            return
        if frame.type == FrameType.LANE and not connection.dialled:
            self._widening.lane_received(connection, frame)
            return
        version = hello_version(frame)
        if version != PROTOCOL_VERSION:
            error = other_version(peer, version)
            if connection.dialled:
                self._not_to_be(connection, error)
            else:
                refuse_version(connection, error)
            return
        hello = unpack_hello(frame)
        if not self._is_welcome(peer, connection.address):
            turn_away(connection)
            return
        if not connection.dialled:
            connection.number = hello.stream
            self._places.take(peer, self._limits.groups.group_at(peer, connection.address))
            self.accepted_streams += 1
        elif hello.stream != connection.number:
            raise FramingError(f"a hello for stream {hello.stream} on stream {connection.number}")
        link = self._link(peer)
        if link.peer_incarnation not in (0, hello.incarnation):
            link.forget()
            self._tell_lost(peer, f"{peer} has restarted, or had given up the link")
            if self._links.get(peer) is not link:
                connection.close()
                return
        link.peer_incarnation = hello.incarnation
        link.highest_stream = max(link.highest_stream, connection.number)
        current = link.connection
        if current is not None and self._rank(connection) < self._rank(current):
            connection.close()
            if connection.dialled and (dialling := self._dialling.get(peer)) is not None:
                dialling.settle(connection, None)
            return
        self._limits.groups.learn(peer, connection.address)
        if not hello.dialable:
            self._remember_client(peer)
        if not connection.dialled:
            connection.write(link.pack_hello(connection.number, self._network))
        connection.on_widen = partial(self._widening.widen, link, connection)
        link.attach(connection, hello)
        if link.connection is connection:
            self._link_is_up(link, connection)

    def _link_is_up(self, link: Link, connection: Connection) -> None:
        self._waiters.settle(link.peer, None)
        dialling = self._dialling.get(link.peer)
        if dialling is None:
            return
        dialling.end_grace()
        pending = dialling.connection
        if pending is connection:
            del self._dialling[link.peer]
            dialling.succeed()
        elif pending is None or self._rank(pending) < self._rank(connection):
            self._stop_dialling(link.peer)
        # Else the peer may already have chosen our stream, which is about to replace this one.

    def _rank(self, connection: Connection) -> tuple[int, bool]:
        """Streams of a pair in the same order on both sides: the higher number, then the smaller
        dialler's id."""
        us_first = self._network.peer_id < connection.peer
        return connection.number, connection.dialled == us_first

    def _not_to_be(self, connection: Connection, error: PeerError) -> None:
        """What we have dialled does not become a link."""
        connection.close()
        if (dialling := self._dialling.get(connection.peer)) is not None:
            dialling.settle(connection, error)

    def _remember_client(self, peer: PeerId) -> None:
        self._clients[peer] = None
        if len(self._clients) > MAX_REMEMBERED_CLIENTS:
            del self._clients[next(iter(self._clients))]
