"""One logical link to one peer: outlives its raw streams, delivers each message once, in order."""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import Protocol

from swarm.errors import FramingError
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.link_window import LinkWindow
from swarm.sessions.messages import Message, Output, Step
from swarm.spans import PeerId
from swarm.wire.acknowledgements import Acknowledgements
from swarm.wire.connection import Connection
from swarm.wire.frames import (
    MAX_BODY_BYTES,
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
from swarm.wire.inbox import Inbox
from swarm.wire.link_handler import LinkHandler
from swarm.wire.link_stats import LinkStats
from swarm.wire.network import Network
from swarm.wire.outbox import Outbox
from swarm.wire.outgoing_message import Buffer
from swarm.wire.outstanding import Outstanding
from swarm.wire.shared_limits import SharedLimits
from swarm.wire.small_frames import SHORT_FRAGMENT_BYTES, SmallFrames

logger = logging.getLogger(__name__)

UNFINISHED_S = 60.0
"""A message that has begun and of which nothing comes for so long, or twice that, breaks the rules.
Long, because the sender lets more urgent ones overtake it."""
FLUSH_BYTES = 256 * 1024
"""Most bytes written in one turn of the event loop."""

_DATA, _ACK = int(FrameType.DATA), int(FrameType.ACK)
_DECODE = int(ServiceClass.DECODE)
_FLOW = (Step, Output)
"""Messages that the sessions themselves bound; all others are counted."""


class LinkOwner(Protocol):
    """What a link tells `Links`."""

    def link_broken(self, link: "Link", reason: str) -> None:
        """Its stream ended; the link itself may be resumed."""

    def link_lost(self, link: "Link", reason: str) -> None:
        """The link is over at once: the peer said goodbye or broke the rules."""


class Link:
    """The state of both directions, and the connection that carries them at the moment."""

    def __init__(
        self,
        peer: PeerId,
        handler: LinkHandler,
        owner: LinkOwner,
        loop: asyncio.AbstractEventLoop,
        limits: SharedLimits,
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
        self._window = LinkWindow()
        self._limits = limits
        self._small = SmallFrames(peer, limits.control_bucket(loop.time()))
        self._upload = upload = limits.upload
        self._fragment_bytes = upload.fragment_bytes if upload else MAX_BODY_BYTES
        self._inbox = Inbox(limits.unfinished)
        self._inflow = limits.downlink.join()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._pace_timer: asyncio.TimerHandle | None = None
        self._streams = 0
        self._bytes_sent = self._bytes_received = 0
        """By streams that are over."""
        self._acknowledgements = Acknowledgements(loop, self._send_ack)
        self._written = asyncio.Event()
        self._flush_soon = False
        self._pong: int | None = None
        """The ping to be answered when the stream is writable again."""
        self._outbox = self._new_outbox()

    def forget(self) -> None:
        """Begin afresh in both directions."""
        self.end()
        self.peer_incarnation = 0
        self._inbox = Inbox(self._limits.unfinished)
        self._outbox = self._new_outbox()

    def _new_outbox(self) -> Outbox:
        limits = self._limits
        outstanding = Outstanding(limits.max_outstanding_bytes, limits.outstanding)
        return Outbox(outstanding, self._window, limits.sending_decode, limits.groups)

    @property
    def met(self) -> bool:
        """Whether hellos have been exchanged with the peer, in its present incarnation."""
        return self.peer_incarnation != 0

    @property
    def idle(self) -> bool:
        return not self._outbox.waiting  # to be written

    @property
    def next_class(self) -> ServiceClass | None:
        """Of the fragment that comes next; None if there is none."""
        return self._outbox.next_class(self._loop.time())

    async def written(self) -> None:
        """Returns when nothing waits to be written, or there is no stream to write it to."""
        while self.connection is not None and not self.idle:
            self._written.clear()
            await self._written.wait()

    def stats(self) -> LinkStats:
        connection = self.connection
        sent = connection.bytes_sent_total if connection else 0
        received = connection.bytes_received_total if connection else 0
        decode_active = self._limits.sending_decode.is_active(self._loop.time())
        return LinkStats(
            up=connection is not None,
            heard_s=self._loop.time() - connection.last_received if connection else None,
            unanswered_s=self._heartbeat.unanswered_s(connection) if connection else 0.0,
            rtt_s=self._heartbeat.rtt_s,
            min_rtt_s=self._window.min_rtt_s,
            outstanding_bytes=self._outbox.outstanding.total,
            unfinished_bytes=self._inbox.unfinished_bytes,
            bytes_sent=self._bytes_sent + sent,
            bytes_received=self._bytes_received + received,
            streams=self._streams,
            lanes=0 if connection is None else connection.lanes_used,
            rate_bytes_per_s=self._window.rate_bytes_per_s,
            window_bytes=self._window.window_bytes(decode_active),
            fragment_bytes=self._window.fragment_bytes(decode_active),
            in_flight_bytes=self._window.in_flight,
            decode_active=decode_active,
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
        now = self._loop.time()
        if hello.remembers == self.incarnation:
            self._outbox.begin_stream(hello.acknowledged, hello.delivered, hello.credit, now)
        else:
            self._outbox.begin_stream(0, (), hello.credit, now)
        self._heartbeat.start(connection)
        self.flush()

    def detach(self) -> None:
        """Closes the stream, if there is one; what was not acknowledged waits for the next."""
        self._heartbeat.stop()
        self._inflow.leave()
        self._acknowledgements.stop()
        for timer in (self._sweep_timer, self._pace_timer):
            if timer is not None:
                timer.cancel()
        self._sweep_timer = self._pace_timer = None
        self._inbox.drop_unfinished()
        self._pong = None
        connection, self.connection = self.connection, None
        self._written.set()
        if connection is not None:
            connection.close()
            self._bytes_sent += connection.bytes_sent_total
            self._bytes_received += connection.bytes_received_total

    def end(self) -> None:
        """Closes the stream, and drops all that was not acknowledged."""
        self.detach()
        self._outbox.close()

    def say_goodbye(self) -> None:
        """Tells the peer that this is the end, too."""
        if self.connection is not None:
            self.connection.write(pack_plain(FrameType.BYE))
        self.end()

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
        connection, inbox, now = self.connection, self._inbox, self._loop.time()
        if connection is None or not connection.writable or self._upload is not None:
            self._outbox.push(message, payload, service_class, session, client, now)
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
            now,
        )
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
        upload, now = self._upload, self._loop.time()
        while connection.writable and (upload is None or self.idle or upload.allows(self)):
            frame = self._outbox.next_frame(
                self._inbox.delivered.complete, self._inbox.grant(), self._fragment_bytes, now
            )
            if frame is None:
                if self.idle:
                    self._written.set()
                elif (pause_s := self._outbox.pause_s(now)) > 0 and self._pace_timer is None:
                    self._pace_timer = self._loop.call_later(pause_s, self._pace_is_over)
                break
            self._write_data(connection, *frame)
            written += sum(map(len, frame))
            if written >= FLUSH_BYTES:
                if not self._flush_soon:
                    self._flush_soon = True
                    self._loop.call_soon(self._flush_again)
                break

    def _write_data(self, connection: Connection, *parts: Buffer) -> None:
        """The frame acknowledges too, but for what came after a gap."""
        connection.write(*parts)
        self._small.data_sent()
        self._acknowledgements.data_written(says_all=not self._inbox.delivered.has_gaps)

    def _pace_is_over(self) -> None:
        self._pace_timer = None
        self.flush()

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
        self._acknowledgements.try_again()
        self.flush()

    # ---- receiving

    def frame(self, frame: Frame) -> None:
        kind, now = frame.type, self._loop.time()
        if kind == _DATA:
            arrived = self._inbox.data(frame)
            self._outbox.credit = frame.credit
            self._outbox.acknowledge(frame.acknowledged, (), now)
            urgent = frame.service_class <= _DECODE
            if not urgent:
                rtt_s = self._heartbeat.min_rtt_s
                self._inbox.limit(self._inflow.data_came(len(frame.body), rtt_s, now))
            elif frame.service_class == _DECODE:
                self._inflow.decode_came(now)
            hurry = self._limits.downlink.decode_is_active(now)
            self._acknowledgements.owe(len(frame.body), at_once=not urgent, hurry=hurry)
            if arrived is not None:
                stray = self._deliver(*arrived)
                if stray or not isinstance(arrived[0], _FLOW):
                    self._small.count(self.connection, now)
            else:
                if self._sweep_timer is None:
                    self._sweep_timer = self._loop.call_later(UNFINISHED_S, self._sweep)
                if len(frame.body) < SHORT_FRAGMENT_BYTES:
                    self._small.count(self.connection, now)
            if self._outbox.waiting:
                self.flush()
        elif kind == _ACK:
            ranges = unpack_ranges(frame.body, frame.acknowledged)
            self._outbox.credit = frame.credit
            self._outbox.acknowledge(frame.acknowledged, ranges, now)
            self._outbox.received(frame.number, now)
            self._small.ack(self.connection, now)
            if self._outbox.waiting:
                self.flush()
            if self._window.outgrows_a_stream and self.connection is not None:
                self.connection.ask_for_lanes()
        elif kind == FrameType.PING:
            self._small.count(self.connection, now)
            if self.connection is not None and self.connection.writable:
                self.connection.write(pack_plain(FrameType.PONG, frame.number))
            else:
                self._pong = frame.number
        elif kind == FrameType.PONG:
            self._small.count(self.connection, now)
            if self.connection is not None:
                rtt_s = self._heartbeat.answered(self.connection, frame.number)
                if rtt_s is not None:
                    self._window.round_trip(rtt_s, now, drained=not self._window.in_flight)
        elif kind == FrameType.BYE:
            self._owner.link_lost(self, "the peer closed the link")
        else:
            raise FramingError(f"a second {FrameType(kind).name} on the same stream")

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

    def _deliver(self, message: Message, payload: memoryview) -> bool | None:
        """True: it leads nowhere."""
        try:
            return self._handler.on_message(self.peer, message, payload)
        except Exception:
            logger.exception("a %s of %s was not handled", type(message).__name__, self.peer)
            return True

    def _send_ack(self) -> bool:
        """False: the stream takes nothing more at the moment."""
        if self.connection is None or not self.connection.writable:
            return False
        inbox = self._inbox
        complete, ranges = inbox.delivered.complete, inbox.delivered.ranges()
        self.connection.write(pack_ack(complete, ranges, inbox.grant(), inbox.received_bytes))
        return True
