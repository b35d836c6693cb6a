"""The sending half of a link: messages in fragments, and kept until acknowledged. Pure."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from swarm.errors import FramingError, LinkFullError
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.fair_queue import Entry, FairQueue
from swarm.sessions.messages import Message, encode
from swarm.wire.frames import (
    HEADER,
    MAX_FRAGMENT_BYTES,
    MAX_HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_RANGES,
    PRELUDE,
    Flags,
    FrameType,
    Range,
)

Buffer: TypeAlias = bytes | bytearray | memoryview

_FIRST, _LAST = int(Flags.FIRST), int(Flags.LAST)
_WHOLE = _FIRST | _LAST
_DATA = int(FrameType.DATA)
_MAX_UNACKNOWLEDGED = MAX_RANGES
"""With no more messages than this on their way, no order of arrival leaves more gaps than the peer
allows. The acknowledgements of 50 ms come for far fewer."""
MESSAGE_OVERHEAD_BYTES = 1024
"""What a message takes besides its bytes while it is kept, about."""
SESSION_SHARE = 4
"""One session may hold the fourth part of what a link may hold."""
_CREDIT_MASK = (1 << 32) - 1


class _Outgoing:
    """A message on its way. `parts` are its bytes, prelude first; `sent` of `size` are written.

    `was_whole`: all of it was written once, on this stream or an earlier one. `delivered`: the
    peer says so; known while the message is being sent again if its first copy came after all.
    """

    __slots__ = (
        "client",
        "delivered",
        "number",
        "part",
        "part_sent",
        "parts",
        "sent",
        "service_class",
        "session",
        "size",
        "was_whole",
    )

    def __init__(
        self,
        parts: Sequence[Buffer],
        size: int,
        service_class: ServiceClass,
        session: bytes,
        client: str,
    ) -> None:
        self.parts = parts
        self.size = size
        self.service_class = service_class
        self.session = session
        self.client = client
        self.number: int | None = None
        self.was_whole = False
        self.delivered = False
        self.rewind()

    def rewind(self) -> None:
        self.sent = self.part = self.part_sent = 0

    def take(self, length: int) -> list[Buffer]:
        """The next `length` bytes, which there are."""
        taken: list[Buffer] = []
        self.sent += length
        while length:
            part = self.parts[self.part]
            piece = memoryview(part)[self.part_sent : self.part_sent + length]
            taken.append(piece)
            length -= len(piece)
            self.part_sent += len(piece)
            if self.part_sent == len(part):
                self.part, self.part_sent = self.part + 1, 0
        return taken

    def entry(self) -> Entry["_Outgoing"]:
        return Entry(self, self.service_class, self.client, self.session, self.size)


class Outbox:
    """Messages wait in a FairQueue, go out in fragments, and are forgotten when acknowledged.

    `outstanding_bytes`, of what waits and of what is not acknowledged, stays below `max_bytes`;
    those of one session below a part of it, so that no session fills the link for the others.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.outstanding_bytes = 0
        self._of_session: dict[bytes, int] = {}
        """The outstanding bytes of each session that has some."""
        self._queue: FairQueue[_Outgoing] = FairQueue()
        self._unacknowledged: dict[int, _Outgoing] = {}
        """By number, ascending; also those of which only some fragments are out."""
        self._next_number = 0
        self._sent_bytes = 0
        self._credit = 0

    @property
    def waiting(self) -> int:
        """Messages of which something is not yet written."""
        return len(self._queue)

    @property
    def next_class(self) -> ServiceClass | None:
        """Of the message that goes on next; None when nothing waits."""
        entry = self._queue.peek()
        return None if entry is None else entry.service_class

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
    ) -> None:
        """Raises LinkFullError if the message is too long or too much is outstanding."""
        parts, size = self._checked(message, payload, service_class, session)
        self._enqueue(parts, size, service_class, session, client)

    def pack_or_push(
        self,
        message: Message,
        payload: Sequence[Buffer],
        service_class: ServiceClass,
        session: bytes,
        client: str,
        acknowledged: int,
        credit: int,
    ) -> bytes | None:
        """Like `push`; but if the message can go as it is, and nothing waits before it, its one
        frame, which is to be written now. This is the way of nearly every decode step."""
        parts, size = self._checked(message, payload, service_class, session)
        if (
            self._queue
            or size > MAX_FRAGMENT_BYTES
            or size > self._room()
            or len(self._unacknowledged) >= _MAX_UNACKNOWLEDGED
        ):
            self._enqueue(parts, size, service_class, session, client)
            return None
        number = self._next_number
        header = HEADER.pack(_DATA, service_class, _WHOLE, size, number, acknowledged, credit)
        frame = b"".join((header, *parts))
        outgoing = _Outgoing(
            (memoryview(frame)[HEADER.size :],), size, service_class, session, client
        )
        outgoing.number, outgoing.sent, outgoing.was_whole = number, size, True
        self._next_number = number + 1
        self._unacknowledged[number] = outgoing
        self._add(session, size)
        self._sent_bytes += size
        return frame

    def _enqueue(
        self,
        parts: Sequence[Buffer],
        size: int,
        service_class: ServiceClass,
        session: bytes,
        client: str,
    ) -> None:
        if size <= MAX_FRAGMENT_BYTES:
            # One copy now, so that a small message does not keep a large tensor alive.
            parts = [b"".join(parts)]
        self._add(session, size)
        self._queue.push(_Outgoing(parts, size, service_class, session, client).entry())

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
        kept = size + MESSAGE_OVERHEAD_BYTES
        if self.outstanding_bytes + kept > self.max_bytes:
            raise LinkFullError(
                f"{self.outstanding_bytes} bytes already wait or are not acknowledged, and "
                f"{self.max_bytes} may be: the peer reads too slowly; send less, or later"
            )
        # One message may always be under way, however long it is; and what ends the session.
        held = self._of_session.get(session, 0) if session else 0
        if (
            held
            and service_class != ServiceClass.CONTROL
            and held + kept > self.max_bytes // SESSION_SHARE
        ):
            raise LinkFullError(
                f"{held} bytes of this session already wait or are not acknowledged, and "
                f"{self.max_bytes // SESSION_SHARE} of one session may be: the peer reads too "
                "slowly; send less, or later"
            )
        parts[0] = PRELUDE.pack(total, header_length)
        return parts, size

    def next_frame(
        self, acknowledged: int, credit: int, longest: int = MAX_FRAGMENT_BYTES
    ) -> bytes | None:
        """The next DATA frame with these fields and a body of at most `longest` bytes; None if
        nothing waits, or the peer must give credit or acknowledge first."""
        while True:
            entry = self._queue.peek()
            if entry is None:
                return None
            outgoing = entry.item
            if outgoing.sent or not outgoing.delivered:
                break
            self._queue.pop()
        left = outgoing.size - outgoing.sent
        length = left if left < longest else longest
        if length > self._room():
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
        if length == left:
            flags |= _LAST
            outgoing.was_whole = True
            self._queue.pop()
        assert outgoing.number is not None
        header = HEADER.pack(
            _DATA, outgoing.service_class, flags, length, outgoing.number, acknowledged, credit
        )
        self._sent_bytes += length
        return b"".join((header, *outgoing.take(length)))

    def _room(self) -> int:
        room = (self._credit - self._sent_bytes) & _CREDIT_MASK
        return room if room < 1 << 31 else 0

    # ---- what the peer says

    def credited(self, credit: int) -> None:
        """Takes the credit field of a frame; grants are never taken back."""
        if (credit - self._credit) & _CREDIT_MASK < 1 << 31:
            self._credit = credit

    def acknowledge(self, acknowledged: int, ranges: Iterable[Range] = ()) -> None:
        """Forgets what has been delivered. Raises FramingError for what we have not sent."""
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

    def begin_stream(self, acknowledged: int, ranges: Iterable[Range], credit: int) -> None:
        """A new stream is up; the peer has what it says, and all else that was sent goes again.

        Raises FramingError like `acknowledge`.
        """
        self.acknowledge(acknowledged, ranges)
        self._sent_bytes = 0
        self._credit = credit
        waiting, self._queue = self._queue, FairQueue()
        for outgoing in self._unacknowledged.values():
            outgoing.rewind()
            self._queue.push(outgoing.entry())
        while waiting:
            entry = waiting.pop()
            if entry.item.number is None:
                self._queue.push(entry)

    def _add(self, session: bytes, size: int) -> None:
        kept = size + MESSAGE_OVERHEAD_BYTES
        self.outstanding_bytes += kept
        if session:
            self._of_session[session] = self._of_session.get(session, 0) + kept

    def _delivered(self, number: int) -> None:
        outgoing = self._unacknowledged[number]
        if not outgoing.was_whole:
            raise FramingError(f"acknowledges message {number}, of which a part is not sent yet")
        outgoing.delivered = True
        del self._unacknowledged[number]
        kept = outgoing.size + MESSAGE_OVERHEAD_BYTES
        self.outstanding_bytes -= kept
        if session := outgoing.session:
            left = self._of_session[session] - kept
            if left:
                self._of_session[session] = left
            else:
                del self._of_session[session]


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
