"""Streams through the libp2p daemon: its messages in any pieces, and long writes."""

import asyncio
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_readers import Reader

from swarm.spans import PeerId
from swarm.wire.daemon_stream import MAX_PRELUDE_BYTES, DaemonStream, split_message, with_length


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, MAX_PRELUDE_BYTES])
def test_a_message_of_the_daemon_is_read_in_any_pieces(size: int) -> None:
    framed = with_length(b"x" * size) + b"rest"
    whole = len(framed) - len(b"rest")
    for cut in {0, 1, 2, 3, whole // 2, max(0, whole - 1)} - set(range(whole, whole + 4)):
        assert split_message(framed[:cut]) is None
    assert split_message(framed) == (b"x" * size, b"rest")


@pytest.mark.parametrize("junk", [b"\xff" * 4, with_length(b"x" * (MAX_PRELUDE_BYTES + 1))])
def test_a_message_that_is_too_long_is_an_error(junk: bytes) -> None:
    with pytest.raises(ValueError, match="from the libp2p daemon"):
        split_message(junk)


@asynccontextmanager
async def stream_and_socket() -> AsyncIterator[tuple[DaemonStream, socket.socket]]:
    """A stream, and what stands for the daemon at the other end of its socket."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    greeted, gone = asyncio.Event(), asyncio.Event()
    stream = DaemonStream(lambda *_: greeted.set(), lambda _: gone.set())
    await loop.create_unix_connection(lambda: stream, sock=ours)
    try:
        await loop.sock_sendall(theirs, with_length(b"who it is"))
        await greeted.wait()
        stream.identify_peer(PeerId("peer"), "")
        yield stream, theirs
    finally:
        stream.abort()
        await gone.wait()
        theirs.close()


async def read(theirs: socket.socket, size: int) -> bytes:
    loop, came = asyncio.get_running_loop(), bytearray()
    while len(came) < size:
        came += await loop.sock_recv(theirs, min(100_000, size - len(came)))
    return bytes(came)


lengths = st.sampled_from([0, 1, 28, 5000, 16 * 1024, 16 * 1024 + 1, 70_000, 300_000])
scripts = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(lengths, min_size=1, max_size=3)),
        st.tuples(st.just("write"), st.lists(st.integers(0, 2000), min_size=65, max_size=150)),
        st.tuples(st.just("read"), st.tuples(st.integers(1, 400_000))),
        st.tuples(st.just("turn"), st.just(())),
    ),
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(scripts)
def test_writes_of_any_parts_arrive_in_order(script: list[tuple]) -> None:  # type: ignore[type-arg]
    async def main() -> None:
        async with stream_and_socket() as (stream, theirs):
            Reader(stream)
            written, came, number = bytearray(), bytearray(), 0
            for kind, sizes in script:
                if kind == "write":
                    parts = []
                    for size in sizes:
                        number += 1
                        parts.append(memoryview(number.to_bytes(4, "big") * (size // 4 + 1))[:size])
                    written += b"".join(parts)
                    stream.write(*parts)
                elif kind == "read":
                    came += await read(theirs, min(sizes[0], len(written) - len(came)))
                else:
                    await asyncio.sleep(0)
            came += await read(theirs, len(written) - len(came))
            assert came == written

    asyncio.run(main())


def test_what_waits_is_sent_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.wire.daemon_stream.CLOSE_GRACE_S", 60.0)

    async def main() -> None:
        async with stream_and_socket() as (stream, theirs):
            Reader(stream)
            payload = os.urandom(2 << 20)
            stream.write(b"header", payload)
            stream.close()
            assert await read(theirs, len(payload) + 6) == b"header" + payload
            assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""

    asyncio.run(main())


def test_a_long_write_is_not_copied_and_the_writer_is_called_when_it_is_out() -> None:
    async def main() -> None:
        async with stream_and_socket() as (stream, theirs):
            reader = Reader(stream)
            payload = memoryview(os.urandom(8 << 20))
            tracemalloc.start()
            try:
                assert not stream.write(b"header", payload, b"end")
                await asyncio.sleep(0.01)
                assert tracemalloc.get_traced_memory()[1] < 1 << 20
            finally:
                tracemalloc.stop()
            assert not reader.writable.is_set()
            came = await read(theirs, len(payload) + 9)
            assert came == b"header" + payload + b"end"
            await asyncio.wait_for(reader.writable.wait(), 10)
            assert stream.write(b"more")
            assert await read(theirs, 4) == b"more"

    asyncio.run(main())


class Pausing(Reader):
    """Wants nothing more at first."""

    def bytes_received(self, data: bytes) -> None:
        if not self.data:
            self.stream.pause_reading()
        super().bytes_received(data)


@pytest.mark.parametrize("wait_s", [0.0, 0.05], ids=["after its start", "before it"])
def test_a_paused_stream_leaves_the_rest_to_the_daemon(wait_s: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with stream_and_socket() as (stream, theirs):
            await loop.sock_sendall(theirs, b"first")
            await asyncio.sleep(wait_s)
            reader = Pausing(stream)
            assert await reader.read(5) == b"first"
            sending = loop.create_task(loop.sock_sendall(theirs, bytes(8 << 20)))
            await asyncio.sleep(0.2)
            assert not sending.done() and len(reader.data) == 5
            stream.resume_reading()
            assert len(await reader.read(5 + (8 << 20))) == 5 + (8 << 20)
            await sending

    asyncio.run(main())


def test_a_stream_whose_daemon_is_gone_drops_what_waits() -> None:
    async def main() -> None:
        async with stream_and_socket() as (stream, theirs):
            reader = Reader(stream)
            assert not stream.write(bytes(8 << 20))
            theirs.close()
            await asyncio.wait_for(reader.until(lambda: reader.ended is not None), 10)
            assert not stream.write(bytes(8 << 20))

    asyncio.run(main())
