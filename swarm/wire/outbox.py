"""The sending half of a link: messages in fragments, and kept until acknowledged. Pure."""

from collections.abc import Callable, Iterable, Sequence

from swarm.errors import FramingError, LinkFullError
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.decode_activity import DecodeActivity
from swarm.scheduling.fair_queue import FairQueue, own_group
from swarm.scheduling.link_window import LinkWindow
from swarm.scheduling.service_counters import Path
from swarm.sessions.messages import Message, encode
from swarm.wire.frames import (
    HEADER,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_RANGES,
    PRELUDE,
    URGENT_CREDIT_BYTES,
    Flags,
    FrameType,
    Range,
)
from swarm.wire.outgoing_message import Buffer, OutgoingMessage
from swarm.wire.outstanding import Outstanding

_FIRST, _LAST = int(Flags.FIRST), int(Flags.LAST)
_WHOLE = _FIRST | _LAST
_DATA = int(FrameType.DATA)
_MAX_UNACKNOWLEDGED = MAX_RANGES
"""With no more messages than this on their way, no order of arrival leaves more gaps than the peer
allows. The acknowledgements of 50 ms come for far fewer."""
_SHORT_MESSAGE_BYTES = 64 * 1024
"""Up to so many are copied when they are handed over."""
_CREDIT_MASK = (1 << 32) - 1
_DECODE = ServiceClass.DECODE
_DECODE_FRAGMENT_BYTES = 16 * 1024
"""Decode is cut no finer than this."""


class Outbox:
    """Messages wait in a FairQueue, go out in fragments, and are forgotten when acknowledged.

    `outstanding` bounds what waits and what is not acknowledged. `window` says how much may be in
    flight; `now` is the time, in seconds.
    """

    def __init__(
        self,
        outstanding: Outstanding,
        window: LinkWindow,
        activity: DecodeActivity,
        group_of: Callable[[str], Path] = own_group,
    ) -> None:
        """`activity`: of all links that share our way out. `group_of`: see `FairQueue`."""
        self.outstanding = outstanding
        self.window = window
        self._activity = activity
        self._queue: FairQueue[OutgoingMessage] = FairQueue(group_of=group_of)
        self._unacknowledged: dict[int, OutgoingMessage] = {}
        """By number, ascending; also those of which only some fragments are out."""
        self._next_number = 0
        self.credit = 0
        """The credit field of the latest frame; it may be less than one before."""
        self._end = 0
        """Where the last of the messages that are being acknowledged ended."""

    @property
    def waiting(self) -> int:
        """Messages of which something is not yet written."""
        return len(self._queue)

    def next_class(self, now: float = 0.0) -> ServiceClass | None:
        """Of the message that goes on next; None when nothing waits."""
        return self._queue.next_class(now)

    @property
    def unacknowledged(self) -> int:
        """Messages of which something is written and that are not known to have come."""
        return len(self._unacknowledged)

    # ---- sending

    def push(
        self,
        message: Message,
        payload: Sequence[Buffer],
        service_class: ServiceClass,
        session: bytes,
        client: str,
        now: float = 0.0,
    ) -> None:
        """Raises LinkFullError if the message is too long or too much is outstanding."""
        parts, size = self._checked(message, payload, service_class, session)
        self._enqueue(parts, size, service_class, session, client, now)

    def pack_or_push(
        self,
        message: Message,
        payload: Sequence[Buffer],
        service_class: ServiceClass,
        session: bytes,
        client: str,
        acknowledged: int,
        credit: int,
        now: float = 0.0,
    ) -> bytes | None:
        """Like `push`; but if the message can go as it is, and nothing waits before it, its one
        frame, which is to be written now. This is the way of nearly every decode step."""
        parts, size = self._checked(message, payload, service_class, session)
        if (
            self._queue
            or size > min(_SHORT_MESSAGE_BYTES, self._fragment_bytes(service_class, now))
            or size > self._room(service_class)
            or len(self._unacknowledged) >= _MAX_UNACKNOWLEDGED
            or not self._may_send(service_class, now)
        ):
            self._enqueue(parts, size, service_class, session, client, now)
            return None
        number = self._next_number
        header = HEADER.pack(_DATA, service_class, _WHOLE, size, number, acknowledged, credit)
        frame = b"".join((header, *parts))
        outgoing = OutgoingMessage(
            (memoryview(frame)[HEADER.size :],), size, service_class, session, client
        )
        outgoing.number, outgoing.sent, outgoing.was_whole = number, size, True
        self._next_number = number + 1
        self._unacknowledged[number] = outgoing
        self.outstanding.add(size, session)
        self._sent(service_class, size, now)
        outgoing.end = self.window.sent_bytes
        self.window.ran_dry()
        return frame

    def _enqueue(
        self,
        parts: Sequence[Buffer],
        size: int,
        service_class: ServiceClass,
        session: bytes,
        client: str,
        now: float,
    ) -> None:
        if size <= _SHORT_MESSAGE_BYTES:
            # One copy now, so that a small message does not keep a large tensor alive.
            parts = [b"".join(parts)]
        self.outstanding.add(size, session)
        self._queue.push(OutgoingMessage(parts, size, service_class, session, client).entry(), now)

    def _checked(
        self,
        message: Message,
        payload: Sequence[Buffer],
        service_class: ServiceClass,
        session: bytes,
    ) -> tuple[list[Buffer], int]:
        """The parts of the message, prelude first, and how many bytes they are."""
        header = encode(message)
        parts: list[Buffer] = [b"", header]
        total = header_length = len(header)
        for buffer in payload:
            view = memoryview(buffer).cast("B") if len(buffer) else b""
            parts.append(view)
            total += len(view)
        if total > MAX_MESSAGE_BYTES or header_length > MAX_HEADER_BYTES:
            raise LinkFullError(
                f"a {type(message).__name__} message of {total} bytes (header {header_length}); "
                f"at most {MAX_MESSAGE_BYTES} ({MAX_HEADER_BYTES}) may be: send it in parts"
            )
        size = PRELUDE.size + total
        self.outstanding.check(size, service_class, session)
        parts[0] = PRELUDE.pack(total, header_length)
        return parts, size

    def next_frame(
        self,
        acknowledged: int,
        credit: int,
        longest: int = MAX_BODY_BYTES,
        now: float = 0.0,
    ) -> list[Buffer] | None:
        """The parts of the next DATA frame, its header first, with these fields and a body of at
        most `longest` bytes; None if nothing waits, or the peer must give credit or acknowledge
        first."""
        window, active = self.window, self._activity.is_active(now)
        fragment = self._queue.quantum = window.fragment_bytes(active)
        while True:
            entry = self._queue.peek(now)
            if entry is None:
                window.ran_dry()
                return None
            outgoing = entry.item
            if outgoing.sent or not outgoing.delivered:
                break
            self._queue.finish(entry, now)
        service_class = outgoing.service_class
        patient = service_class > _DECODE
        left = outgoing.size - outgoing.sent
        room = self._room(service_class)
        length = min(left, longest, fragment if patient else max(fragment, _DECODE_FRAGMENT_BYTES))
        if patient and room + window.in_flight < window.window_bytes(active):
            # The peer grants less than the path would hold: somebody's decode comes to it.
            length = min(length, window.fragment_bytes(True))
        if length > room:
            # A small piece when nothing else moves, but no stream of them.
            cut = patient and 2 * room >= length
            if room <= 0 or (window.in_flight and not cut):
                return None
            length = room
        crowded = patient and self._queue.next_class(now, last=_DECODE) is not None
        if not self._may_send(service_class, now) and not (
            # Decode alone fills the path's queue, and waits for its share of it to be served: a
            # smaller window than decode's own would only leave the path empty.
            crowded and window.may_send_decode()
        ):
            return None
        flags = 0
        if outgoing.sent == 0:
            flags = _FIRST
            if outgoing.number is None:
                if len(self._unacknowledged) >= _MAX_UNACKNOWLEDGED:
                    return None
                outgoing.number = self._next_number
                self._next_number += 1
                self._unacknowledged[outgoing.number] = outgoing
        self._sent(service_class, length, now, crowded=crowded)
        self._queue.serve(entry, length, now)
        if length == left:
            flags |= _LAST
            outgoing.was_whole = True
            outgoing.end = self.window.sent_bytes
            self._queue.finish(entry, now)
        assert outgoing.number is not None
        header = HEADER.pack(
            _DATA, service_class, flags, length, outgoing.number, acknowledged, credit
        )
        return [header, *outgoing.take(length)]

    def _fragment_bytes(self, service_class: ServiceClass, now: float) -> int:
        """The longest fragment of this class, now."""
        wanted = self.window.fragment_bytes(self._activity.is_active(now))
        return max(wanted, _DECODE_FRAGMENT_BYTES) if service_class <= _DECODE else wanted

    def _may_send(self, service_class: ServiceClass, now: float) -> bool:
        if service_class == _DECODE:
            return self.window.may_send_decode()
        if service_class < _DECODE:
            return True
        active = self._activity.is_active(now)
        return self.window.may_send(active) and not self.window.pause_s(now, active)

    def pause_s(self, now: float) -> float:
        """How long what waits has to wait for its pace; 0: for nothing, or for the peer."""
        service_class = self._queue.next_class(now)
        if service_class is None or service_class <= _DECODE:
            return 0.0
        return self.window.pause_s(now, self._activity.is_active(now))

    def _sent(
        self, service_class: ServiceClass, size: int, now: float, *, crowded: bool = False
    ) -> None:
        self.window.sent(size, now, urgent=service_class <= _DECODE, crowded=crowded)
        if service_class == _DECODE:
            self._activity.seen(now)

    def _room(self, service_class: ServiceClass) -> int:
        """Bytes of the peer's grant; the last of them are for decode alone."""
        room = (self.credit - self.window.sent_bytes) & _CREDIT_MASK
        if room >= 1 << 31:
            return 0
        return room if service_class <= _DECODE else room - URGENT_CREDIT_BYTES

    # ---- what the peer says

    def received(self, received_bytes: int, now: float) -> None:
        """Takes the number of bytes that the peer says it has of this stream."""
        self.window.acknowledged(received_bytes, now)

    def acknowledge(
        self, acknowledged: int, ranges: Iterable[Range] = (), now: float = 0.0
    ) -> None:
        """Forgets what has been delivered. Raises FramingError for what we have not sent."""
        self._end = 0
        self._acknowledge(acknowledged, ranges)
        # The stream is in order: what was sent before a delivered message has come, too.
        self.window.acknowledged(self._end, now)

    def _acknowledge(self, acknowledged: int, ranges: Iterable[Range]) -> None:
        unacknowledged = self._unacknowledged
        if acknowledged > self._next_number:
            raise FramingError(
                f"acknowledges messages below {acknowledged}, but the next is {self._next_number}"
            )
        while unacknowledged:
            number = next(iter(unacknowledged))
            if number >= acknowledged:
                break
            self._delivered(number)
        ranges = list(ranges)
        if not ranges:
            return
        if ranges[-1].end > self._next_number:
            raise FramingError(
                f"acknowledges message {ranges[-1].end - 1}, but the next is {self._next_number}"
            )
        if sum(end - start for start, end in ranges) < len(unacknowledged):
            numbers = [n for start, end in ranges for n in range(start, end)]
        else:
            numbers = _within(unacknowledged, ranges)
        for number in numbers:
            if number in unacknowledged:
                self._delivered(number)

    def begin_stream(
        self, acknowledged: int, ranges: Iterable[Range], credit: int, now: float = 0.0
    ) -> None:
        """A new stream is up; the peer has what it says, and all else that was sent goes again.

        Raises FramingError like `acknowledge`.
        """
        self._acknowledge(acknowledged, ranges)
        self.window.begin_stream(now)
        self.credit = credit
        waiting = self._queue.drain()
        for outgoing in self._unacknowledged.values():
            outgoing.rewind()
            self._queue.push(outgoing.entry(), now)
        for entry in waiting:
            if entry.item.number is None:
                self._queue.push(entry, now)

    def _delivered(self, number: int) -> None:
        outgoing = self._unacknowledged[number]
        if not outgoing.was_whole:
            raise FramingError(f"acknowledges message {number}, of which a part is not sent yet")
        outgoing.delivered = True
        self._end = max(self._end, outgoing.end)
        del self._unacknowledged[number]
        self.outstanding.remove(outgoing.size, outgoing.session)

    def close(self) -> None:
        """Nothing of it will be sent any more."""
        self.outstanding.clear()


def _within(numbers: Iterable[int], ranges: Sequence[Range]) -> list[int]:
    """Those of the ascending `numbers` that lie in the ascending `ranges`."""
    found = []
    index = 0
    for number in numbers:
        while index < len(ranges) and ranges[index].end <= number:
            index += 1
        if index == len(ranges):
            break
        if ranges[index].start <= number:
            found.append(number)
    return found
