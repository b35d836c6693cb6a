"""The frames of a link: a fixed header of 28 bytes, then a body of at most 256 KiB.

    type u8 | class u8 | flags u16 | length u32 | number u64 | acknowledged u64 | credit u32

All little-endian. `length` is the body's. `number` is the message's in DATA, free for the
frame's own use in PING and PONG, and in ACK how many bytes of DATA bodies its sender has received
on this stream. `acknowledged` and `credit` are valid in HELLO, DATA and ACK:

- `acknowledged`: all messages with lower numbers have been delivered, in this direction's own
  count; HELLO and ACK list in their bodies what else has been delivered.
- `credit`: how many bytes of DATA bodies the sender of this frame lets the other send on this
  stream, counted from the stream's beginning, modulo 2**32. The latest frame counts, also when it
  says less than one before; what is on its way by then is no fault. The last `URGENT_CREDIT_BYTES`
  of it are for control and decode.

A message is `total u32 | header length u32 | header (msgpack) | payload`, cut into DATA bodies;
`total` counts all but itself and the header length. FIRST and LAST mark its ends.

HELLO's first 8 bytes, `magic | version`, are the same in every version of the protocol.

A link may be spread over several streams, its lanes (`swarm.wire.lanes`): LANE begins each further
one, WIDEN asks who dialled the first one for them, and SPREAD says that all frames after it go over
the lanes in turn; `number` is how many there are.
"""

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from itertools import islice
from struct import Struct
from typing import NamedTuple, TypeAlias

from swarm.errors import FramingError
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.link_window import LONG_FRAGMENT_BYTES
from swarm.wire.pieces import Pieces

PROTOCOL_VERSION = 3
MAGIC = b"SWRM"

MAX_BODY_BYTES = LONG_FRAGMENT_BYTES
"""Of one frame."""
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Of one message, header and payload together."""
MAX_HEADER_BYTES = 256 * 1024
"""Of a message's msgpack header. A step of 4,096 tokens takes about 20 KB."""
MAX_UNFINISHED_BYTES = 256 * 1024 * 1024
"""Of the messages on one link that have begun and not ended; no sender keeps more outstanding."""
URGENT_CREDIT_BYTES = 64 * 1024
"""Of the credit, what messages that can wait leave to those that cannot."""
MAX_RANGES = 4000
"""Of delivered numbers in one HELLO or ACK; the lowest ones go first, the rest is not listed."""

HEADER = Struct("<BBHIQQI")
PRELUDE = Struct("<II")
_RANGE = Struct("<QQ")
_VERSION = Struct("<4sI")
_HELLO = Struct("<QQQI")
_LANE = Struct("<QI")


class FrameType(IntEnum):
    """The first byte of a frame."""

    HELLO = 1
    DATA = 2
    ACK = 3
    PING = 4
    PONG = 5
    BYE = 6
    LANE = 7
    SPREAD = 8
    WIDEN = 9


class Flags(IntFlag):
    """Which ends of its message a DATA frame has."""

    NONE = 0
    FIRST = 1
    LAST = 2


class Frame(NamedTuple):
    """One frame; its header's fields, without the length, and its body."""

    type: int
    service_class: int
    flags: int
    number: int
    acknowledged: int
    credit: int
    body: memoryview


class Range(NamedTuple):
    """Message numbers `start` to `end`, `end` exclusive."""

    start: int
    end: int


class Hello(NamedTuple):
    """The first frame in each direction of a stream.

    `incarnation` names the sender's side of the link: as long as it remembers the link, the same.
    `remembers` is the other's incarnation as the sender knows it, 0 if it knows none; only if it
    is the receiver's own do `acknowledged` and `delivered` mean anything. `stream` orders the
    streams of a pair. `dialable`: whether the sender can be dialled.
    """

    incarnation: int
    remembers: int
    stream: int
    dialable: bool
    acknowledged: int
    delivered: tuple[Range, ...]
    credit: int


class LaneHello(NamedTuple):
    """The first frame in each direction of a further stream: it is lane `lane`, beside the first
    one of number `stream`, in the sender's `incarnation` of the link."""

    incarnation: int
    stream: int
    lane: int


_PLAIN_TYPES = frozenset(
    (FrameType.PING, FrameType.PONG, FrameType.BYE, FrameType.SPREAD, FrameType.WIDEN)
)
_TYPES = frozenset(FrameType)
_NUM_CLASSES = len(ServiceClass)
_ALL_FLAGS = 3
_MAX_STREAM = 1 << 48
_Fields: TypeAlias = tuple[int, int, int, int, int, int]
"""Of a frame, without its body."""


class FrameReader:
    """Cuts a stream of bytes into frames; holds less than one frame beyond what it is fed."""

    def __init__(self) -> None:
        self._begun = Pieces()
        """What has come of the frame that is not whole yet."""
        self._fields: _Fields | None = None
        """Its header, when that is whole; what has begun is then of the body only."""
        self._length = 0

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that `data` completes; their bodies are views of `data`, or of memory that
        nobody else has. `data` must not be changed any more.

        Raises FramingError for bytes that are no frame; nothing may be fed after that.
        """
        frames: list[Frame] = []
        view, offset = memoryview(data), 0
        if self._begun.length or self._fields is not None:
            offset = self._complete(view, frames)
        available = len(view)
        while available - offset >= HEADER.size:
            fields, length = _header(view, offset)
            begin = offset + HEADER.size
            offset = begin + length
            if offset > available:
                self._fields, self._length = fields, length
                offset = begin
                break
            frames.append(Frame(*fields, view[begin:offset]))
        if offset < available:
            self._begun.add(view[offset:])
        return frames

    def _complete(self, view: memoryview, frames: list[Frame]) -> int:
        """Goes on with the frame that has begun; how many bytes of `view` it takes."""
        begun, taken = self._begun, 0
        if self._fields is None:
            taken = min(len(view), HEADER.size - begun.length)
            begun.add(view[:taken])
            if begun.length < HEADER.size:
                return taken
            self._fields, self._length = _header(begun.take(), 0)
        if taken < len(view):
            more = min(len(view) - taken, self._length - begun.length)
            begun.add(view[taken : taken + more])
            taken += more
        if begun.length == self._length:
            frames.append(Frame(*self._fields, begun.take()))
            self._fields = None
        return taken


def _header(data: memoryview, offset: int) -> tuple[_Fields, int]:
    """The fields of a header that is whole, without the length, and the length of the body."""
    kind, service_class, flags, length, number, acknowledged, credit = HEADER.unpack_from(
        data, offset
    )
    if length > MAX_BODY_BYTES:
        raise FramingError(f"a frame of {length} bytes; at most {MAX_BODY_BYTES} may be in one")
    if kind not in _TYPES or service_class >= _NUM_CLASSES or flags > _ALL_FLAGS:
        raise FramingError(f"no frame: type {kind}, class {service_class}, flags {flags}")
    if length and kind in _PLAIN_TYPES:
        raise FramingError(f"a {FrameType(kind).name} frame with a body of {length} bytes")
    return (kind, service_class, flags, number, acknowledged, credit), length


def pack_plain(kind: FrameType, number: int = 0) -> bytes:
    """A PING, PONG, BYE, SPREAD or WIDEN."""
    return HEADER.pack(kind, 0, 0, 0, number, 0, 0)


def pack_ack(
    acknowledged: int, delivered: Iterable[Range], credit: int, received: int = 0
) -> bytes:
    """`received`: bytes of DATA bodies that came on this stream; the others as in `Frame`."""
    body = _pack_ranges(delivered)
    return HEADER.pack(FrameType.ACK, 0, 0, len(body), received, acknowledged, credit) + body


def unpack_ranges(body: memoryview, acknowledged: int) -> tuple[Range, ...]:
    """The ranges of an ACK: ascending, apart from each other, above `acknowledged`.

    Raises FramingError if they are not.
    """
    if len(body) % _RANGE.size:
        raise FramingError(f"{len(body)} bytes are no list of ranges")
    ranges = tuple(Range(*numbers) for numbers in _RANGE.iter_unpack(body))
    lowest = acknowledged
    for start, end in ranges:
        if not lowest < start < end:
            raise FramingError(f"range {start}:{end} of delivered messages is out of order")
        lowest = end
    return ranges


def pack_hello(hello: Hello, version: int = PROTOCOL_VERSION) -> bytes:
    """`version`: that is told to the peer."""
    body = b"".join(
        (
            _VERSION.pack(MAGIC, version),
            _HELLO.pack(hello.incarnation, hello.remembers, hello.stream, hello.dialable),
            _pack_ranges(hello.delivered),
        )
    )
    header = HEADER.pack(FrameType.HELLO, 0, 0, len(body), 0, hello.acknowledged, hello.credit)
    return header + body


def hello_version(frame: Frame) -> int:
    """The sender's version of the protocol. Raises FramingError if the frame is no HELLO."""
    if frame.type != FrameType.HELLO or len(frame.body) < _VERSION.size:
        raise FramingError("the stream does not begin with a hello")
    magic, version = _VERSION.unpack_from(frame.body)
    if magic != MAGIC:
        raise FramingError("the stream does not begin with a hello")
    return int(version)


def unpack_hello(frame: Frame) -> Hello:
    """Only for frames whose `hello_version` is ours. Raises FramingError."""
    body = frame.body[_VERSION.size :]
    if len(body) < _HELLO.size:
        raise FramingError(f"a hello of {len(frame.body)} bytes")
    incarnation, remembers, stream, dialable = _HELLO.unpack_from(body)
    if incarnation == 0 or not 0 < stream < _MAX_STREAM or dialable > 1:
        raise FramingError("a hello with impossible fields")
    delivered = unpack_ranges(body[_HELLO.size :], frame.acknowledged)
    return Hello(
        incarnation,
        remembers,
        stream,
        bool(dialable),
        frame.acknowledged,
        delivered,
        frame.credit,
    )


def pack_lane(hello: LaneHello) -> bytes:
    body = _LANE.pack(hello.incarnation, hello.lane)
    return HEADER.pack(FrameType.LANE, 0, 0, len(body), hello.stream, 0, 0) + body


def unpack_lane(frame: Frame) -> LaneHello:
    """Raises FramingError."""
    if frame.type != FrameType.LANE or len(frame.body) != _LANE.size:
        raise FramingError("the stream does not begin as a lane")
    incarnation, lane = _LANE.unpack(frame.body)
    return LaneHello(incarnation, frame.number, lane)


def _pack_ranges(ranges: Iterable[Range]) -> bytes:
    return b"".join([_RANGE.pack(start, end) for start, end in islice(ranges, MAX_RANGES)])
