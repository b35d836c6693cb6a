"""What a link costs: 4 KB there and back between two processes, against the stream below it.

Three arms in turns, all on loopback: plain TCP (asyncio), a raw stream through the two libp2p
daemons, and the link on such a stream (a decode step's header and payload, echoed as an output).
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import psutil
from common import Report, arguments, median, percentile

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Message, Output, Step, TensorSpec, Want
from swarm.spans import PeerId
from swarm.wire.identity import Identity
from swarm.wire.libp2p import Libp2pNetwork
from swarm.wire.links import Links
from swarm.wire.network import ByteStream, StreamReceiver

SESSION = bytes(16)
TIMEOUT_S = 30.0


class Arm(Protocol):
    async def send(self, payload: bytes) -> None:
        """Sends and returns when the echo is back."""


class StreamArm(asyncio.Protocol):
    """A raw stream or a TCP connection: counts the echoed bytes."""

    def __init__(self) -> None:
        self.write: Callable[[bytes], Any]
        self._missing = 0
        self._done: asyncio.Future[None] | None = None

    async def send(self, payload: bytes) -> None:
        self._missing = len(payload)
        self._done = asyncio.get_running_loop().create_future()
        self.write(payload)
        await self._done

    def bytes_received(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing == 0 and self._done is not None:
            self._done.set_result(None)

    data_received = bytes_received

    def writable_again(self) -> None:
        pass

    def stream_ended(self, reason: str) -> None:
        raise RuntimeError(reason)


class Echo:
    """Sends back what comes: the server's end of a raw stream, or its links' handler."""

    def __init__(self) -> None:
        self.links: Links | None = None

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        assert self.links is not None and isinstance(message, Step)
        output = Output(
            message.session, message.epoch, message.seq, (7,), (1,), message.tensors, 1.0, 0.1
        )
        self.links.send(peer, output, (payload,), ServiceClass.DECODE, message.session)

    def on_link_lost(self, peer: PeerId, reason: str) -> None:
        pass


class EchoStream:
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        stream.start(self)

    def bytes_received(self, data: bytes) -> None:
        self._stream.write(data)

    def writable_again(self) -> None:
        pass

    def stream_ended(self, reason: str) -> None:
        pass


class EchoConnection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert isinstance(self._transport, asyncio.Transport)
        self._transport.write(data)


class LinkArm:
    def __init__(self, network: Libp2pNetwork, peer: PeerId) -> None:
        self._peer = peer
        self.links = Links(network, self)
        self._done: asyncio.Future[None] | None = None
        self._seq = 0

    async def send(self, payload: bytes) -> None:
        tensors = (TensorSpec("hidden", "float32", (1, len(payload) // 4)),)
        at = (self._seq,)
        step = Step(SESSION, 0, self._seq, at, (1,), at, (0,), Want.LAST, tensors)
        self._seq += 1
        self._done = asyncio.get_running_loop().create_future()
        self.links.send(self._peer, step, (payload,), ServiceClass.DECODE, SESSION)
        await self._done

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        if self._done is not None:
            self._done.set_result(None)

    def on_link_lost(self, peer: PeerId, reason: str) -> None:
        raise RuntimeError(reason)


async def serve() -> None:
    """The other process: two libp2p peers and a TCP listener, until standard input ends."""
    loop = asyncio.get_running_loop()
    echo = Echo()
    raw = await Libp2pNetwork.create(Identity.create())
    raw.on_stream = lambda stream: (EchoStream(stream), None)[1]
    linked = await Libp2pNetwork.create(Identity.create())
    echo.links = Links(linked, echo)
    await echo.links.start()
    tcp = await loop.create_server(EchoConnection, "127.0.0.1", 0)
    print(raw.addresses[0], linked.addresses[0], tcp.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    tcp.close()
    await echo.links.close()
    await linked.close()
    await raw.close()


async def connected(address: str) -> tuple[Libp2pNetwork, PeerId]:
    network = await Libp2pNetwork.create(
        Identity.create(), initial_peers=[address], client_only=True
    )
    return network, PeerId(address.rsplit("/", 1)[1])


async def timed(arm: Arm, payload: bytes, count: int) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await asyncio.wait_for(arm.send(payload), TIMEOUT_S)
        times.append(1e3 * (time.perf_counter() - started))
    return times


def processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def compare(options: argparse.Namespace, server: asyncio.subprocess.Process) -> None:
    assert server.stdout is not None and server.pid is not None
    line = (await asyncio.wait_for(server.stdout.readline(), TIMEOUT_S)).decode().split()
    raw_address, link_address, port = line
    loop = asyncio.get_running_loop()
    raw_network, raw_peer = await connected(raw_address)
    link_network, link_peer = await connected(link_address)
    tcp, raw, link = StreamArm(), StreamArm(), LinkArm(link_network, link_peer)
    transport, _ = await loop.create_connection(lambda: tcp, "127.0.0.1", int(port))
    tcp.write = transport.write
    stream = await raw_network.dial(raw_peer, TIMEOUT_S)
    receiver: StreamReceiver = raw
    stream.start(receiver)
    raw.write = stream.write
    await link.links.start()
    await link.links.connect(link_peer, TIMEOUT_S)

    arms: dict[str, Arm] = {"plain TCP": tcp, "raw libp2p stream": raw, "link": link}
    payload = bytes(options.bytes)
    times: dict[str, list[float]] = {name: [] for name in arms}
    seconds = {name: [0.0, 0.0] for name in arms}
    processes = psutil.Process(), psutil.Process(server.pid)
    for turn in range(options.repetitions + 1):
        for name, arm in arms.items():
            before = [processor_seconds(process) for process in processes]
            taken = await timed(arm, payload, options.messages)
            if turn:  # the first one warms up
                times[name] += taken
                for side, process in enumerate(processes):
                    seconds[name][side] += processor_seconds(process) - before[side]
    report = Report(f"link: {options.bytes} bytes there and back", as_json=options.json)
    report.table(
        "round trips, ms; and Python's processor time, us a message",
        [
            {
                "arm": name,
                "p50": median(times[name]),
                "p99": percentile(times[name], 0.99),
                "client us": 1e6 * seconds[name][0] / len(times[name]),
                "server us": 1e6 * seconds[name][1] / len(times[name]),
            }
            for name in arms
        ],
    )
    report.finish()
    transport.close()
    stream.close()
    await link.links.close()
    await link_network.close()
    await raw_network.close()


async def main(options: argparse.Namespace) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--serve",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        await compare(options, server)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        await asyncio.wait_for(server.wait(), TIMEOUT_S)


if __name__ == "__main__":
    parser = arguments(__doc__, repetitions=5)
    parser.add_argument("--bytes", type=int, default=4096, help="of the payload")
    parser.add_argument("--messages", type=int, default=500, help="of each turn")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    asyncio.run(serve() if chosen.serve else main(chosen))
