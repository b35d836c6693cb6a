"""The frame reader with any split of the bytes, with junk, and with lengths that lie."""

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import FramingError
from swarm.wire.frames import (
    HEADER,
    MAX_BODY_BYTES,
    PROTOCOL_VERSION,
    Frame,
    FrameReader,
    FrameType,
    Hello,
    Range,
    hello_version,
    pack_ack,
    pack_hello,
    pack_plain,
    unpack_hello,
    unpack_ranges,
)


def packed(kind: FrameType, number: int, body: bytes) -> bytes:
    return HEADER.pack(kind, 1, 3, len(body), number, 7, 9) + body


def plain(frame: Frame) -> tuple[int, ...]:
    return (*frame[:-1], bytes(frame.body))


frames = st.lists(
    st.one_of(
        st.builds(
            packed,
            st.sampled_from([FrameType.DATA, FrameType.ACK, FrameType.HELLO]),
            st.integers(0, 2**64 - 1),
            st.one_of(st.binary(max_size=50), st.integers(0, 100_000).map(bytes)),
        ),
        st.builds(
            pack_plain,
            st.sampled_from([FrameType.PING, FrameType.PONG, FrameType.BYE]),
            st.integers(0, 2**64 - 1),
        ),
    ),
    max_size=8,
)


@given(frames, st.lists(st.integers(0, 200_000), max_size=20))
def test_any_split_gives_the_same_frames(sent: list[bytes], cuts: list[int]) -> None:
    data = b"".join(sent)
    whole = [plain(frame) for frame in FrameReader().feed(data)]
    assert [HEADER.pack(*f[:3], len(f[6]), *f[3:6]) + f[6] for f in whole] == sent
    reader, split = FrameReader(), []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in pairwise(edges):
        split += [plain(frame) for frame in reader.feed(data[begin:end])]
    assert split == whole


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_junk_is_refused_or_waits_for_more(pieces: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for piece in pieces:
            for frame in reader.feed(piece):
                assert len(frame.body) <= MAX_BODY_BYTES
    except FramingError:
        pass


@pytest.mark.parametrize("length", [MAX_BODY_BYTES + 1, 2**31, 2**32 - 1])
def test_a_length_that_lies_takes_no_memory(length: int) -> None:
    header = HEADER.pack(FrameType.DATA, 0, 3, length, 2**63, 0, 0)
    tracemalloc.start()
    with pytest.raises(FramingError, match=str(length)):
        FrameReader().feed(header)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_byte_by_byte_keeps_one_frame_at_most() -> None:
    body = bytes(range(256)) * (MAX_BODY_BYTES // 256)
    data = packed(FrameType.DATA, 1, body)
    reader = FrameReader()
    tracemalloc.start()
    complete = [f for i in range(len(data)) for f in reader.feed(data[i : i + 1])]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [plain(f) for f in complete] == [(2, 1, 3, 1, 7, 9, body)]
    assert peak < 4 * MAX_BODY_BYTES


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(0, 0, 0, 0, 0, 0, 0),
        HEADER.pack(len(FrameType) + 1, 0, 0, 0, 0, 0, 0),
        HEADER.pack(FrameType.DATA, 5, 0, 0, 0, 0, 0),
        HEADER.pack(FrameType.DATA, 0, 4, 0, 0, 0, 0),
        HEADER.pack(FrameType.PING, 0, 0, 1, 0, 0, 0),
        b"GET / HTTP/1.1\r\nHost: example\r\n\r\n",
    ],
)
def test_what_is_no_frame_is_refused(header: bytes) -> None:
    with pytest.raises(FramingError):
        FrameReader().feed(header)


def read_one(data: bytes) -> Frame:
    (frame,) = FrameReader().feed(data)
    return frame


def test_hello_round_trip() -> None:
    hello = Hello(2**64 - 1, 5, 3, True, 10, (Range(12, 13), Range(20, 2**40)), 99)
    frame = read_one(pack_hello(hello))
    assert hello_version(frame) == PROTOCOL_VERSION
    assert unpack_hello(frame) == hello
    assert hello_version(read_one(pack_hello(hello, version=7))) == 7


@given(st.binary(max_size=100))
def test_a_malformed_hello_is_refused(body: bytes) -> None:
    header = HEADER.pack(FrameType.HELLO, 0, 0, len(body), 0, 0, 0)
    with pytest.raises(FramingError):
        hello_version(read_one(header + body))


@given(st.binary(max_size=60).map(lambda tail: b"SWRM\x02\x00\x00\x00" + tail))
def test_a_hello_of_our_version_is_checked(body: bytes) -> None:
    frame = read_one(HEADER.pack(FrameType.HELLO, 0, 0, len(body), 0, 0, 0) + body)
    try:
        hello = unpack_hello(frame)
    except FramingError:
        return
    assert hello.incarnation and hello.stream


def test_ranges_of_an_ack() -> None:
    frame = read_one(pack_ack(3, [Range(5, 6), Range(8, 9)], 1))
    assert unpack_ranges(frame.body, frame.acknowledged) == (Range(5, 6), Range(8, 9))


@pytest.mark.parametrize("ranges", [[(3, 5)], [(5, 5)], [(9, 4)], [(5, 9), (9, 12)]])
def test_ranges_out_of_order_are_refused(ranges: list[tuple[int, int]]) -> None:
    frame = read_one(pack_ack(3, [Range(*r) for r in ranges], 1))
    with pytest.raises(FramingError):
        unpack_ranges(frame.body, frame.acknowledged)
