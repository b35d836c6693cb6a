"""Rate and delay that are made without root, in virtual time; namespaces where there is root."""

import asyncio
import os
import struct
import subprocess
import sys
from pathlib import Path

import interference_modules
import pytest
from interference_hub import wire_bytes
from interference_network import Loopback, Namespaces, Shape, make_network
from interference_relay import RelayedNetwork, Uplink

from swarm.spans import PeerId
from swarm.wire.memory import MemoryNetworkHub
from swarm.wire.network import ByteStream
from swarm.wire.virtual_time import run

ANNA, BERT = PeerId("peer-anna"), PeerId("peer-bert")
ECHO = """
import json, socket, sys
listener = socket.create_server((sys.argv[1], 5000))
print('{"event": "up"}', flush=True)
connection, _ = listener.accept()
tcp = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
print(json.dumps({"event": "over", "tcp": tcp.rstrip(bytes(1)).decode()}), flush=True)
while data := connection.recv(1000):
    connection.sendall(data)
"""
ASK = """
import json, socket, sys, time
connection = socket.create_connection((sys.argv[1], 5000))
took = []
for _ in range(5):
    began = time.perf_counter()
    connection.sendall(b"x")
    connection.recv(1)
    took.append(time.perf_counter() - began)
print(json.dumps({"event": "took", "seconds": min(took)}), flush=True)
"""


class Reader:
    def __init__(self, stream: ByteStream) -> None:
        self.came: list[tuple[float, bytes]] = []
        self.writable = 0
        self.ended = False
        stream.start(self)

    def bytes_received(self, data: bytes) -> None:
        self.came.append((asyncio.get_running_loop().time(), bytes(data)))

    def writable_again(self) -> None:
        self.writable += 1

    def stream_ended(self, reason: str) -> None:
        self.ended = True


async def relayed(uplink: Uplink, streams: int) -> tuple[list[ByteStream], list[Reader]]:
    """Streams from Anna through the uplink, and what reads them at Bert's."""
    hub = MemoryNetworkHub()
    anna = RelayedNetwork(hub.network(ANNA), uplink)
    readers: list[Reader] = []
    hub.network(BERT).on_stream = lambda stream: readers.append(Reader(stream))
    dialled: list[ByteStream] = [await anna.dial(BERT, 1.0) for _ in range(streams)]
    return dialled, readers


def test_what_is_written_takes_its_time_at_the_rate_and_the_delay() -> None:
    async def main() -> tuple[bytes, float]:
        uplink = Uplink()
        uplink.bytes_per_s, uplink.delay_s = 10_000.0, 0.5
        (stream,), readers = await relayed(uplink, 1)
        stream.write(b"a" * 5_000)
        stream.write(b"b" * 5_000)
        await asyncio.sleep(3)
        times = [at for at, _ in readers[0].came]
        return b"".join(data for _, data in readers[0].came), times[-1]

    data, last = run(main())
    assert data == b"a" * 5_000 + b"b" * 5_000
    assert last == pytest.approx(1.5, abs=0.01)


def test_streams_share_the_way_piece_by_piece() -> None:
    async def main() -> float:
        uplink = Uplink()
        uplink.bytes_per_s = 100_000.0
        streams, readers = await relayed(uplink, 2)
        streams[0].write(bytes(1_000_000))
        streams[1].write(bytes(1_000))
        await asyncio.sleep(30)
        assert sum(len(data) for _, data in readers[0].came) == 1_000_000
        return readers[1].came[0][0]

    assert run(main()) < 0.2


def test_a_full_stream_says_so_and_tells_when_it_is_not() -> None:
    async def main() -> None:
        uplink = Uplink()
        uplink.bytes_per_s = 100_000.0
        (stream,), _ = await relayed(uplink, 1)
        sender = Reader(stream)
        assert stream.write(bytes(1_000))
        assert not stream.write(bytes(200_000))
        assert sender.writable == 0
        await asyncio.sleep(5)
        assert sender.writable == 1

    run(main())


def test_what_was_written_before_the_end_still_comes() -> None:
    async def main() -> None:
        uplink = Uplink()
        uplink.bytes_per_s, uplink.delay_s = 10_000.0, 0.2
        (stream,), readers = await relayed(uplink, 1)
        stream.write(b"c" * 3_000)
        stream.close()
        await asyncio.sleep(5)
        assert b"".join(data for _, data in readers[0].came) == b"c" * 3_000
        assert readers[0].ended

    run(main())


@pytest.mark.parametrize(
    ("kind", "each", "payload", "wire"),
    [
        (0, 0, 1448, 1500),
        (1, 1448, 1448, 1500),
        (1, 1448, 1449, 1449 + 2 * 52),
        (1, 1448, 10 * 1448, 10 * 1500),
        (1, 0, 100, 152),
    ],
)
def test_packets_that_come_as_one_count_each_with_its_headers(
    kind: int, each: int, payload: int, wire: int
) -> None:
    """52: of an IPv4 header of 20 bytes and a TCP header of 32."""
    before = struct.pack("=BBHHHH", 0, kind, 52, each, 0, 0)
    assert wire_bytes(before + bytes(52 + payload)) == wire


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_namespaces_keep_packets_for_the_delay_and_are_gone_afterwards() -> None:
    from processes import Program

    network = make_network(2, tcp="reno")  # which every Linux has
    if not isinstance(network, Namespaces):
        pytest.skip("no namespaces here, in spite of root")
    with network:
        network.shape(Shape(mbit=20.0, rtt_ms=60.0))
        before = network.sent_bytes()
        echo = network.command(0, [sys.executable, "-c", ECHO, network.address(0)])
        with Program("echo", echo) as server:
            server.wait_for("up", 20)
            ask = network.command(1, [sys.executable, "-c", ASK, network.address(0)])
            with Program("ask", ask) as client:
                assert client.wait_for("took", 20)["seconds"] >= 0.06
            assert server.wait_for("over", 20)["tcp"] == "reno"
        after = network.sent_bytes()
        assert all(b > a for a, b in zip(before, after, strict=True))
    left = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert f"swarm{os.getpid() % 100_000}-" not in left


def test_without_root_there_is_loopback_and_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    network = make_network(2)
    assert isinstance(network, Loopback)
    assert network.relays and "without root" in network.kind


@pytest.mark.matrix
@pytest.mark.parametrize("way", [[], ["--in-process-relay"]])
def test_the_benchmark_runs_and_prints_its_figures(way: list[str], tmp_path: Path) -> None:
    import json

    program = interference_modules.ROOT / "benchmarks" / "interference.py"
    options = ["--points", "20:20", "--uses", "0.45", "--arms", "A", "B", "C", "--seeds", "1"]
    options += ["--seconds", "3", "--parts", "main", "--json", "--plot", str(tmp_path / "plot.svg")]
    ran = subprocess.run(
        [sys.executable, str(program), *options, *way],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        env={**os.environ, "PYTHONPATH": str(interference_modules.ROOT)},
    )
    figures = json.loads(ran.stdout)
    assert [row["arm"] for row in figures["the wire: arms"]] == ["A", "B", "C"]
    assert all(row["gaps"] > 0 and row["prompts"] > 0 for row in figures["the wire: arms"])
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")
