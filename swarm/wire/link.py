"""One logical link to one peer: outlives its raw streams, delivers each message once, in order."""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from swarm.errors import FramingError
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Message, Output, Step
from swarm.spans import PeerId
from swarm.wire.connection import Connection
from swarm.wire.frames import (
    MAX_FRAGMENT_BYTES,
    MAX_RANGES,
    Frame,
    FrameType,
    Hello,
    pack_ack,
    pack_hello,
    pack_plain,
    unpack_ranges,
)
from swarm.wire.heartbeat import Heartbeat
from swarm.wire.inbox import Inbox, UnfinishedBudget
from swarm.wire.network import Network
from swarm.wire.outbox import Buffer, Outbox
from swarm.wire.rate import TokenBucket
from swarm.wire.upload_limit import UploadLimit

logger = logging.getLogger(__name__)

ACK_DELAY_S = 0.05
ACK_BYTES = 256 * 1024
UNFINISHED_S = 60.0
"""A message that has begun and of which nothing comes for so long, or twice that, breaks the rules.
Long, because the sender lets more urgent ones overtake it."""
FLUSH_BYTES = 256 * 1024
"""Most bytes written in one turn of the event loop."""

_FLOW = (Step, Output)
"""Messages that the sessions themselves bound; all others are counted."""


class LinkHandler(Protocol):
    """Whoever uses the links. Called in the event loop; must be quick."""

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        """Each message once, whole, and in order within a session; `payload` is the handler's."""

    def on_link_lost(self, peer: PeerId, reason: str) -> None:
        """What was sent and not answered may be lost, and the peer may have lost its sessions."""


class LinkOwner(Protocol):
    """What a link tells `Links`."""

    def link_broken(self, link: "Link", reason: str) -> None:
        """Its stream ended; the link itself may be resumed."""

    def link_lost(self, link: "Link", reason: str) -> None:
        """The link is over at once: the peer said goodbye or broke the rules."""


@dataclass(frozen=True)
class LinkStats:
    """A link as it is now; times in seconds, None while unknown."""

    up: bool
    rtt_s: float | None
    """Smoothed round trip of pings."""
    min_rtt_s: float | None
    outstanding_bytes: int
    """What waits to be sent or is not acknowledged."""
    waiting_messages: int
    unfinished_bytes: int
    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    streams: int
    """How many raw streams the link has had."""


class Link:
    """The state of both directions, and the connection that carries them at the moment."""

    def __init__(
        self,
        peer: PeerId,
        handler: LinkHandler,
        owner: LinkOwner,
        loop: asyncio.AbstractEventLoop,
        max_outstanding_bytes: int,
        budget: UnfinishedBudget,
        control: TokenBucket,
        upload: UploadLimit | None,
    ) -> None:
        self.peer = peer
        self.incarnation = secrets.randbits(63) + 1
        self.peer_incarnation = 0
        """0: we have not spoken yet."""
        self.peer_dialable = True
        self.dialled = False
        """Whether we dialled the latest stream."""
        self.highest_stream = 0
        self.connection: Connection | None = None
        self._handler = handler
        self._owner = owner
        self._loop = loop
        self._heartbeat = Heartbeat(loop, self.broken)
        self._max_outstanding_bytes = max_outstanding_bytes
        self._budget = budget
        self._control = control
        self._upload = upload
        self._fragment_bytes = upload.fragment_bytes if upload else MAX_FRAGMENT_BYTES
        self._throttled = False
        self._inbox = Inbox(budget)
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._messages_sent = self._messages_received = self._streams = 0
        self._bytes_sent = self._bytes_received = 0
        """By streams that are over."""
        self._ack_owed = False
        self._ack_bytes = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._written = asyncio.Event()
        self._flush_soon = False
        self._pong: int | None = None
        """The ping to be answered when the stream is writable again."""
        self.forget()

    def forget(self) -> None:
        """Begin afresh in both directions."""
        self.detach()
        self.peer_incarnation = 0
        self._inbox = Inbox(self._budget)
        self._outbox = Outbox(self._max_outstanding_bytes)

    @property
    def met(self) -> bool:
        """Whether hellos have been exchanged with the peer, in its present incarnation."""
        return self.peer_incarnation != 0

    @property
    def idle(self) -> bool:
        """Nothing waits to be written."""
        return not self._outbox.waiting

    @property
    def next_class(self) -> ServiceClass | None:
        """Of the fragment that would be sent now; None if there is none."""
        return self._outbox.next_class

    async def written(self) -> None:
        """Returns when nothing waits to be written, or there is no stream to write it to."""
        while self.connection is not None and not self.idle:
            self._written.clear()
            await self._written.wait()

    def stats(self) -> LinkStats:
        connection = self.connection
        sent = connection.bytes_sent_total if connection else 0
        received = connection.bytes_received_total if connection else 0
        return LinkStats(
            up=connection is not None,
            rtt_s=self._heartbeat.rtt_s,
            min_rtt_s=self._heartbeat.min_rtt_s,
            outstanding_bytes=self._outbox.outstanding_bytes,
            waiting_messages=self._outbox.waiting,
            unfinished_bytes=self._inbox.unfinished_bytes,
            messages_sent=self._messages_sent,
            messages_received=self._messages_received,
            bytes_sent=self._bytes_sent + sent,
            bytes_received=self._bytes_received + received,
            streams=self._streams,
        )

    # ---- streams

    def next_stream(self) -> int:
        """The number of a stream that we dial now."""
        self.highest_stream += 1
        return self.highest_stream

    def pack_hello(self, stream: int, network: Network) -> bytes:
        """Our hello on a new stream."""
        delivered = self._inbox.delivered
        hello = Hello(
            incarnation=self.incarnation,
            remembers=self.peer_incarnation,
            stream=stream,
            dialable=bool(network.addresses),
            acknowledged=delivered.complete,
            delivered=tuple(delivered.ranges()[:MAX_RANGES]),
            credit=Inbox.first_grant(),
        )
        return pack_hello(hello)

    def attach(self, connection: Connection, hello: Hello) -> None:
        """Both hellos are exchanged on `connection`: from now on it carries the link.

        The caller has set `peer_incarnation`, and called `forget` before if it was another.
        """
        self.detach()
        self.peer_dialable = hello.dialable
        self.connection = connection
        self.dialled = connection.dialled
        connection.link = self
        connection.upload = self._upload
        self._streams += 1
        self._inbox.begin_stream()
        if hello.remembers == self.incarnation:
            self._outbox.begin_stream(hello.acknowledged, hello.delivered, hello.credit)
        else:
            self._outbox.begin_stream(0, (), hello.credit)
        self._heartbeat.start(connection)
        self.flush()

    def detach(self) -> None:
        """Closes the stream, if there is one; what was not acknowledged waits for the next."""
        self._heartbeat.stop()
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        self._inbox.drop_unfinished()
        self._ack_owed, self._ack_bytes, self._pong = False, 0, None
        connection, self.connection = self.connection, None
        self._written.set()
        if connection is not None:
            connection.close()
            self._bytes_sent += connection.bytes_sent_total
            self._bytes_received += connection.bytes_received_total

    def say_goodbye(self) -> None:
        if self.connection is not None:
            self.connection.write(pack_plain(FrameType.BYE))
        self.detach()

    # ---- sending

    def send(
        self,
        message: Message,
        payload: Sequence[Buffer],
        service_class: ServiceClass,
        session: bytes,
        client: str,
    ) -> None:
        """Raises LinkFullError."""
        connection, inbox = self.connection, self._inbox
        if connection is None or not connection.writable or self._upload is not None:
            self._outbox.push(message, payload, service_class, session, client)
            self._messages_sent += 1
            self.flush()
            return
        frame = self._outbox.pack_or_push(
            message,
            payload,
            service_class,
            session,
            client,
            inbox.delivered.complete,
            inbox.grant(),
        )
        self._messages_sent += 1
        if frame is None:
            self.flush()
        else:
            self._write_data(connection, frame)

    def flush(self) -> None:
        """Writes as much as the stream takes, the most urgent first."""
        connection = self.connection
        if connection is None:
            return
        written = 0
        upload = self._upload
        while connection.writable and (upload is None or self.idle or upload.allows(self)):
            frame = self._outbox.next_frame(
                self._inbox.delivered.complete, self._inbox.grant(), self._fragment_bytes
            )
            if frame is None:
                self._written.set()
                break
            self._write_data(connection, frame)
            written += len(frame)
            if written >= FLUSH_BYTES:
                if not self._flush_soon:
                    self._flush_soon = True
                    self._loop.call_soon(self._flush_again)
                break

    def _write_data(self, connection: Connection, frame: bytes) -> None:
        """The frame acknowledges too, but for what came after a gap."""
        connection.write(frame)
        self._ack_bytes = 0
        if not self._inbox.delivered.has_gaps:
            self._ack_owed = False

    def _flush_again(self) -> None:
        self._flush_soon = False
        self.flush()

    def writable_again(self) -> None:
        connection = self.connection
        if connection is None:
            return
        if self._pong is not None:
            connection.write(pack_plain(FrameType.PONG, self._pong))
            self._pong = None
        if self._ack_bytes >= ACK_BYTES:
            self._send_ack()
        self.flush()

    # ---- receiving

    def frame(self, frame: Frame) -> None:
        kind = frame.type
        if kind == FrameType.DATA:
            arrived = self._inbox.data(frame)
            self._outbox.credited(frame.credit)
            self._outbox.acknowledge(frame.acknowledged)
            self._owe_ack(len(frame.body))
            if arrived is not None:
                self._messages_received += 1
                self._deliver(*arrived)
                if not isinstance(arrived[0], _FLOW):
                    self._count_control()
            elif self._sweep_timer is None:
                self._sweep_timer = self._loop.call_later(UNFINISHED_S, self._sweep)
            if self._outbox.waiting:
                self.flush()
        elif kind == FrameType.ACK:
            ranges = unpack_ranges(frame.body, frame.acknowledged)
            self._outbox.credited(frame.credit)
            self._outbox.acknowledge(frame.acknowledged, ranges)
            if self._outbox.waiting:
                self.flush()
        elif kind == FrameType.PING:
            self._count_control()
            if self.connection is not None and self.connection.writable:
                self.connection.write(pack_plain(FrameType.PONG, frame.number))
            else:
                self._pong = frame.number
        elif kind == FrameType.PONG:
            if self.connection is not None:
                self._heartbeat.answered(self.connection, frame.number)
        elif kind == FrameType.BYE:
            self._owner.link_lost(self, "the peer closed the link")
        else:
            raise FramingError("a second hello on the same stream")

    def _sweep(self) -> None:
        self._sweep_timer = None
        try:
            self._inbox.sweep()
        except FramingError as error:
            text = f"{self.peer} sent {error}; its link is closed"
            self.failed(FramingError(text, peer=self.peer))
            return
        if self._inbox.has_unfinished:
            self._sweep_timer = self._loop.call_later(UNFINISHED_S, self._sweep)

    def broken(self, connection: Connection, reason: str) -> None:
        if connection is self.connection:
            self.detach()
            self._owner.link_broken(self, reason)

    def failed(self, error: FramingError) -> None:
        logger.warning("%s", error)
        self._owner.link_lost(self, str(error))

    def _count_control(self) -> None:
        """Who sends too many is read more slowly; everything still comes, and in order."""
        pause_s = self._control.take(self._loop.time())
        if pause_s and self.connection is not None:
            self.connection.pause(pause_s)
            if not self._throttled:
                self._throttled = True
                logger.warning("%s sends too many small messages; it is slowed down", self.peer)

    def _deliver(self, message: Message, payload: memoryview) -> None:
        try:
            self._handler.on_message(self.peer, message, payload)
        except Exception:
            logger.exception("a %s of %s was not handled", type(message).__name__, self.peer)

    def _owe_ack(self, received: int) -> None:
        self._ack_owed = True
        self._ack_bytes += received
        if self._ack_bytes >= ACK_BYTES and self.connection and self.connection.writable:
            self._send_ack()
        elif self._ack_timer is None:
            self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._ack_due)

    def _ack_due(self) -> None:
        self._ack_timer = None
        if self._ack_owed:
            if self.connection is not None and self.connection.writable:
                self._send_ack()
            else:
                self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._ack_due)

    def _send_ack(self) -> None:
        if self.connection is not None:
            delivered = self._inbox.delivered
            ack = pack_ack(delivered.complete, delivered.ranges(), self._inbox.grant())
            self._ack_owed, self._ack_bytes = False, 0
            self.connection.write(ack)
