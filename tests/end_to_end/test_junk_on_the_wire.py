"""A stranger writes what is no protocol to live servers; they go on, and others notice nothing."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import (
    greedy,
    plain_model,
    some_ids,
)

from swarm.scheduling.classes import ServiceClass
from swarm.server.server import Server
from swarm.sessions.messages import Close, encode
from swarm.testing import LocalSwarm
from swarm.wire.frames import (
    HEADER,
    PRELUDE,
    Flags,
    FrameType,
    Hello,
    Range,
    pack_ack,
    pack_hello,
    pack_plain,
)
from swarm.wire.identity import Identity
from swarm.wire.libp2p import Libp2pNetwork
from swarm.wire.network import ByteStream

BOTH = Flags.FIRST | Flags.LAST
TOKENS = 24


class Stranger:
    """A libp2p peer that speaks bytes; its methods run in the servers' loop."""

    def __init__(self, network: Libp2pNetwork) -> None:
        self._network = network
        self._streams = count(1)

    async def tell(self, server: Server, data: bytes, *, hello: bool, half: bool) -> None:
        """Writes `data`, after a sound hello or instead of it.

        With `half` the stream is closed in the middle of it; else the server must close it.
        """
        stream = await self._network.dial(server.peer_id, 10)
        ended = Ended()
        stream.start(ended)
        if hello:
            stream.write(pack_hello(Hello(7, 0, next(self._streams), False, 0, (), 1 << 20)))
            await ended.wait_for_bytes()
        stream.write(data)
        if half:
            await asyncio.sleep(0.05)
        else:
            # Alive in all other ways, so that silence is not why the server closes.
            pinging = asyncio.create_task(self._ping(stream))
            try:
                await ended.wait_for_end()
            finally:
                pinging.cancel()
        stream.close()

    async def _ping(self, stream: ByteStream) -> None:
        while True:
            await asyncio.sleep(0.2)
            stream.write(pack_plain(FrameType.PING))


class Ended:
    """A `StreamReceiver` that waits for the first bytes and for the end."""

    def __init__(self) -> None:
        self._bytes, self._end = asyncio.Event(), asyncio.Event()

    def bytes_received(self, data: bytes) -> None:
        self._bytes.set()

    def writable_again(self) -> None: ...

    def stream_ended(self, reason: str) -> None:
        self._end.set()

    async def wait_for_bytes(self) -> None:
        async with asyncio.timeout(30):
            await self._bytes.wait()

    async def wait_for_end(self) -> None:
        async with asyncio.timeout(30):
            await self._end.wait()


@pytest.fixture(scope="module")
def stranger(loopback_swarm: LocalSwarm) -> Iterator[Stranger]:
    async def start() -> Libp2pNetwork:
        peers = [server.address for server in loopback_swarm.servers]
        return await Libp2pNetwork.create(Identity.create(), initial_peers=peers, client_only=True)

    network = loopback_swarm.run(start())
    yield Stranger(network)
    loopback_swarm.run(network.close())


def frame(
    kind: int, body: bytes = b"", *, flags: int = 0, length: int | None = None, number: int = 0
) -> bytes:
    """A frame whose header may claim another length than its body's."""
    claimed = len(body) if length is None else length
    return HEADER.pack(kind, ServiceClass.CONTROL, flags, claimed, number, 0, 0) + body


def message(header: bytes, *, total: int | None = None, header_length: int | None = None) -> bytes:
    """A message's body, whose prelude may lie too."""
    return (
        PRELUDE.pack(
            len(header) if total is None else total,
            len(header) if header_length is None else header_length,
        )
        + header
    )


JUNK = random.Random(0).randbytes(4096)
CLOSE = encode(Close(bytes(16)))

INSTEAD_OF_HELLO: dict[str, bytes] = {
    "junk": JUNK,
    "http": b"GET / HTTP/1.1\r\nHost: swarm.example\r\nAccept: */*\r\n\r\n" * 4,
    "lying-length": HEADER.pack(FrameType.HELLO, 0, 0, (1 << 32) - 1, 0, 0, 0),
    "wrong-magic": frame(FrameType.HELLO, b"SWIM" + bytes(60)),
    "data-before-hello": frame(FrameType.DATA, message(CLOSE), flags=BOTH),
}
AFTER_HELLO: dict[str, bytes] = {
    "junk": JUNK,
    "second-hello": pack_hello(Hello(7, 0, 99, False, 0, (), 1 << 20)),
    "lying-length": frame(FrameType.DATA, CLOSE, flags=BOTH, length=1 << 31),
    "unknown-type": frame(77),
    "unknown-flags": frame(FrameType.DATA, message(CLOSE), flags=99),
    "ping-with-body": frame(FrameType.PING, b"12345678"),
    "huge-message": frame(FrameType.DATA, message(CLOSE, total=(1 << 32) - 1), flags=Flags.FIRST),
    "huge-header": frame(
        FrameType.DATA, message(CLOSE, total=1 << 25, header_length=1 << 24), flags=Flags.FIRST
    ),
    "longer-than-it-says": frame(FrameType.DATA, message(CLOSE, total=3), flags=BOTH),
    "shorter-than-it-says": frame(FrameType.DATA, message(CLOSE, total=500), flags=BOTH),
    "no-beginning": frame(FrameType.DATA, message(CLOSE), flags=Flags.LAST),
    "no-prelude": frame(FrameType.DATA, b"abc", flags=BOTH),
    "no-msgpack": frame(FrameType.DATA, message(JUNK[:200]), flags=BOTH),
    "ack-of-nothing": pack_ack(1 << 40, (), 0),
    "ranges-out-of-order": pack_ack(0, (Range(9, 3),), 0),
}
HALVES: dict[str, tuple[bytes, bool]] = {
    "half-hello": (pack_hello(Hello(7, 0, 50, False, 0, (), 1 << 20))[:31], False),
    "half-header": (frame(FrameType.PING)[:11], True),
    "half-body": (frame(FrameType.DATA, message(CLOSE), flags=BOTH, length=400), True),
    "half-message": (
        frame(FrameType.DATA, message(JUNK[:999], total=5000), flags=Flags.FIRST),
        True,
    ),
}
CASES: dict[str, Callable[[Stranger, Server], Any]] = {
    **{
        f"at-once-{name}": lambda stranger, server, data=data: stranger.tell(
            server, data, hello=False, half=False
        )
        for name, data in INSTEAD_OF_HELLO.items()
    },
    **{
        f"later-{name}": lambda stranger, server, data=data: stranger.tell(
            server, data, hello=True, half=False
        )
        for name, data in AFTER_HELLO.items()
    },
    **{
        name: lambda stranger, server, data=data, hello=hello: stranger.tell(
            server, data, hello=hello, half=True
        )
        for name, (data, hello) in HALVES.items()
    },
}


@contextmanager
def generating(model: Any, expected: torch.Tensor, ids: torch.Tensor) -> Iterator[None]:
    """Generates all the time, in another thread; at the end all its ids must have been right."""
    enough, begun = threading.Event(), threading.Event()
    found: list[torch.Tensor | BaseException] = []

    def work() -> None:
        try:
            while not enough.is_set() or not found:
                begun.set()
                found.append(greedy(model, ids, TOKENS))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        enough.set()
        thread.join()
    for one in found:
        assert isinstance(one, torch.Tensor), one
        assert torch.equal(one, expected)


def test_others_generate_while_strangers_write_junk(
    tiny_llama: Path, loopback_swarm: LocalSwarm, loopback_model: Any, stranger: Stranger
) -> None:
    ids = some_ids(9)
    expected = greedy(plain_model(tiny_llama), ids, TOKENS)
    assert torch.equal(greedy(loopback_model, ids, TOKENS), expected)
    before = [status["streams"] for status in loopback_swarm.statuses()]
    not_closed = []
    with generating(loopback_model, expected, ids):
        for server in loopback_swarm.servers:
            for name, tell in CASES.items():
                try:
                    loopback_swarm.run(tell(stranger, server))
                except TimeoutError:
                    not_closed.append(name)
    assert not_closed == []
    assert torch.equal(greedy(loopback_model, ids, TOKENS), expected)
    loopback_swarm.wait_until_free()
    # The stranger is forgotten, and with it what it left unfinished.
    loopback_swarm.wait_until(
        lambda: [server.status()["streams"] for server in loopback_swarm.servers] == before
    )
    assert all(str(server.state) == "online" for server in loopback_swarm.servers)
