"""The receiving half of a link: whole messages out of DATA frames, each exactly once. Pure."""

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from swarm.errors import FramingError
from swarm.sessions.messages import Message, decode
from swarm.wire.fair_budget import FairBudget
from swarm.wire.frames import (
    MAX_HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_RANGES,
    MAX_UNFINISHED_BYTES,
    PRELUDE,
    URGENT_CREDIT_BYTES,
    Flags,
    Frame,
    Range,
)
from swarm.wire.pieces import Pieces

CREDIT_BYTES = 4 * 1024 * 1024
"""How many bytes of DATA bodies a peer may send beyond what we have received, at most."""
MAX_UNFINISHED_MESSAGES = 1024
MAX_GAPS = MAX_RANGES
"""Most runs of delivered numbers with gaps between them; one ACK lists them all. An honest peer
makes a few, and never more, for it has no more messages unacknowledged."""
NUMBER_WINDOW = 1 << 20
"""How far a number may be beyond the first that is missing."""

_FIRST, _LAST = int(Flags.FIRST), int(Flags.LAST)
_WHOLE = _FIRST | _LAST
_CREDIT_MASK = (1 << 32) - 1


class Numbers:
    """The numbers of the delivered messages: all below `complete`, and some runs above it."""

    def __init__(self) -> None:
        self.complete = 0
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __contains__(self, number: int) -> bool:
        if number < self.complete:
            return True
        index = bisect_right(self._starts, number) - 1
        return index >= 0 and number < self._ends[index]

    def add(self, number: int) -> None:
        """`number` is not yet among them. Raises FramingError beyond `MAX_GAPS` or the window."""
        starts, ends = self._starts, self._ends
        if number == self.complete:
            self.complete += 1
            if starts and starts[0] == self.complete:
                self.complete = ends[0]
                del starts[0], ends[0]
            return
        self.check(number)
        index = bisect_right(starts, number)
        joins_left = index > 0 and ends[index - 1] == number
        joins_right = index < len(starts) and starts[index] == number + 1
        if joins_left and joins_right:
            ends[index - 1] = ends[index]
            del starts[index], ends[index]
        elif joins_left:
            ends[index - 1] = number + 1
        elif joins_right:
            starts[index] = number
        else:
            if len(starts) >= MAX_GAPS:
                raise FramingError(f"message {number} leaves more than {MAX_GAPS} gaps before it")
            starts.insert(index, number)
            ends.insert(index, number + 1)

    def check(self, number: int) -> None:
        """Raises FramingError for a number that no honest peer has come to yet."""
        if number >= self.complete + NUMBER_WINDOW:
            raise FramingError(
                f"message {number}, but message {self.complete} is missing; it may be at most "
                f"{NUMBER_WINDOW} before"
            )

    @property
    def has_gaps(self) -> bool:
        return bool(self._starts)

    def ranges(self) -> Sequence[Range]:
        """The runs above `complete`, ascending."""
        return [Range(start, end) for start, end in zip(self._starts, self._ends, strict=True)]


class _Arriving:
    """A message that has begun and not ended. A duplicate is counted, but not kept."""

    __slots__ = (
        "duplicate",
        "header",
        "header_length",
        "left",
        "moved",
        "pieces",
        "service_class",
        "total",
    )

    def __init__(self, header_length: int, total: int, service_class: int, duplicate: bool) -> None:
        self.duplicate = duplicate
        self.service_class = service_class
        self.total = self.left = total
        self.header_length = header_length
        # They grow with what comes: what is only announced must cost nothing.
        self.header = bytearray()
        self.pieces = Pieces()
        """Of the payload."""
        self.moved = True
        """Whether a fragment has come since the last `sweep`."""

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return len(self.header) + self.pieces.length

    def add(self, piece: memoryview) -> None:
        self.left -= len(piece)
        self.moved = True
        if self.duplicate:
            return
        missing = self.header_length - len(self.header)
        if missing:
            self.header += piece[:missing]
            piece = piece[missing:]
        self.pieces.add(piece)


class Inbox:
    """Takes DATA frames, gives messages; knows what has been delivered and what may be sent."""

    def __init__(self, budget: FairBudget) -> None:
        self.delivered = Numbers()
        self._budget = budget
        self._held = 0
        """What this link takes of the budget."""
        self.received_bytes = 0
        """Of DATA bodies, on this stream."""
        self.unfinished_bytes = 0
        """As announced; what has come of them is in memory."""
        self._beyond = CREDIT_BYTES
        """What the peer may send now beyond what has come."""
        self._granted = CREDIT_BYTES
        """The most that it was granted: what came too late to be told less is within it."""
        self._arriving: dict[int, _Arriving] = {}

    @staticmethod
    def first_grant() -> int:
        """The credit field of our hello."""
        return CREDIT_BYTES

    def grant(self) -> int:
        """The value of the credit field in the frame that is sent now."""
        granted = self.received_bytes + self._beyond
        if granted > self._granted:
            self._granted = granted
        return granted & _CREDIT_MASK

    def limit(self, patient_bytes: int | None) -> None:
        """How much of what can wait the peer may send beyond what has come; None: no limit of its
        own. It may be lowered at any time."""
        if patient_bytes is None:
            self._beyond = CREDIT_BYTES
        else:
            self._beyond = min(CREDIT_BYTES, patient_bytes + URGENT_CREDIT_BYTES)

    def begin_stream(self) -> None:
        """Unfinished messages come again, whole."""
        self.received_bytes = 0
        self._beyond = self._granted = CREDIT_BYTES
        self.drop_unfinished()

    def drop_unfinished(self) -> None:
        """The stream is over, and with it what has not ended on it."""
        self._arriving.clear()
        self.unfinished_bytes = 0
        self._hold(-self._held)

    @property
    def has_unfinished(self) -> bool:
        return bool(self._arriving)

    def sweep(self) -> None:
        """Raises FramingError if a message has not moved since the last time."""
        for number, arriving in self._arriving.items():
            if not arriving.moved:
                raise FramingError(
                    f"nothing more of message {number}, of which {arriving.left} bytes are missing"
                )
            arriving.moved = False

    def _hold(self, by: int) -> None:
        budget = self._budget
        if by > 0 and not budget.has_room(self._held, by):
            raise FramingError(
                f"{self._held + by} bytes of unfinished messages, while those of all peers take "
                f"{budget.used} of {budget.max_bytes} bytes"
            )
        budget.change(self._held, by)
        self._held += by

    def data(self, frame: Frame) -> tuple[Message, memoryview] | None:
        """The message that this frame ends, with its payload in memory of its own (writable).

        None: it ends none, or one that was delivered before. Raises FramingError.
        """
        body, number = frame.body, frame.number
        self.received_bytes += len(body)
        if self.received_bytes > self._granted:
            raise FramingError(
                f"{self.received_bytes} bytes came, but {self._granted} were granted"
            )
        if frame.flags == _WHOLE:
            total, header_length = _prelude(body)
            if len(body) - PRELUDE.size != total:
                raise FramingError(f"message {number} says that it has {total} bytes")
            if number in self._arriving:
                raise FramingError(f"message {number} begins twice")
            if number in self.delivered:
                return None
            payload_begin = PRELUDE.size + header_length
            message = _decoded(body[PRELUDE.size : payload_begin], number)
            self.delivered.add(number)
            return message, memoryview(bytearray(body[payload_begin:]))
        if frame.flags & _FIRST:
            body = self._begin(frame)
        return self._continue(frame, body)

    def _begin(self, frame: Frame) -> memoryview:
        total, header_length = _prelude(frame.body)
        if frame.number in self._arriving:
            raise FramingError(f"message {frame.number} begins twice")
        if len(self._arriving) >= MAX_UNFINISHED_MESSAGES:
            raise FramingError(f"more than {MAX_UNFINISHED_MESSAGES} messages are unfinished")
        if self.unfinished_bytes + total > MAX_UNFINISHED_BYTES:
            raise FramingError(f"unfinished messages take more than {MAX_UNFINISHED_BYTES} bytes")
        self.delivered.check(frame.number)
        duplicate = frame.number in self.delivered
        self._arriving[frame.number] = _Arriving(
            header_length, total, frame.service_class, duplicate
        )
        self.unfinished_bytes += total
        return frame.body[PRELUDE.size :]

    def _continue(self, frame: Frame, piece: memoryview) -> tuple[Message, memoryview] | None:
        number = frame.number
        arriving = self._arriving.get(number)
        if arriving is None:
            raise FramingError(f"a fragment of message {number}, which has not begun")
        ends = bool(frame.flags & _LAST)
        if len(piece) > arriving.left or ends != (len(piece) == arriving.left):
            raise FramingError(f"message {number} is not as long as it said")
        if frame.service_class != arriving.service_class:
            raise FramingError(f"message {number} changes its class on the way")
        if not arriving.duplicate:
            self._hold(len(piece))
        arriving.add(piece)
        if not ends:
            return None
        del self._arriving[number]
        self._hold(-arriving.held)
        self.unfinished_bytes -= arriving.total
        if arriving.duplicate:
            return None
        message = _decoded(memoryview(arriving.header), number)
        self.delivered.add(number)
        return message, arriving.pieces.take()


def _prelude(body: memoryview) -> tuple[int, int]:
    """The message's length, and its header's; both are within the limits."""
    if len(body) < PRELUDE.size:
        raise FramingError(f"a message begins with {len(body)} bytes")
    total, header_length = PRELUDE.unpack_from(body)
    if total > MAX_MESSAGE_BYTES:
        raise FramingError(f"a message of {total} bytes; at most {MAX_MESSAGE_BYTES} may be")
    if header_length > min(total, MAX_HEADER_BYTES):
        raise FramingError(f"a message header of {header_length} bytes")
    return total, header_length


def _decoded(header: memoryview, number: int) -> Message:
    try:
        return decode(header)
    except msgspec.DecodeError as error:
        raise FramingError(f"message {number} is malformed: {error}") from None
