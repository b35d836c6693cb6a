"""Bulk over one link without decode, beside a raw libp2p stream that is written without limit.

Two processes: one receives, on a host of a test network, the other sends. Both ways take turns over
the same pair of hosts, each over a peer and daemon of its own, so that neither's connection is the
other's. The receiver says when all has come.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from common import in_turns
from interference_network import Shape, TestNetwork
from processes import Program

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Message, Output, Step, TensorSpec, Want
from swarm.spans import PeerId
from swarm.wire.identity import Identity
from swarm.wire.libp2p import Libp2pNetwork
from swarm.wire.links import Links
from swarm.wire.network import ByteStream

SHAPES = [Shape(mbit, rtt_ms) for mbit in (20.0, 100.0) for rtt_ms in (0.0, 20.0, 80.0)]
LOOPBACK_MBIT = 1000.0
"""Decides only how much is sent there."""
_MESSAGE_TOKENS = 256
_MESSAGE_BYTES = _MESSAGE_TOKENS * 2048
_AHEAD = 16
"""Messages that wait in the link."""
_SESSION = bytes(16)
_TIMEOUT_S = 120.0


class Receiver:
    """Answers each message."""

    def __init__(self) -> None:
        self.links: Links | None = None

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        assert self.links is not None and isinstance(message, Step)
        answer = Output(message.session, 0, message.seq, (), (), (), 0.0, 0.0)
        self.links.send(peer, answer, (), ServiceClass.DECODE, message.session)

    def on_link_lost(self, peer: PeerId, reason: str) -> None: ...


class RawReceiver:
    """Answers with a byte for each so many bytes."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._came = 0
        stream.start(self)

    def bytes_received(self, data: bytes) -> None:
        self._came += len(data)
        done, self._came = divmod(self._came, _MESSAGE_BYTES)
        if done:
            self._stream.write(b"." * done)

    def writable_again(self) -> None: ...

    def stream_ended(self, reason: str) -> None: ...


async def receive(host: str) -> None:
    """Until standard input ends."""
    listen = [f"/ip4/{host}/tcp/0"]
    receiver = Receiver()
    raw = await Libp2pNetwork.create(Identity.create(), listen=listen)
    raw.on_stream = lambda stream: (RawReceiver(stream), None)[1]
    linked = await Libp2pNetwork.create(Identity.create(), listen=listen)
    receiver.links = Links(linked, receiver)
    await receiver.links.start()
    _say({"event": "ready", "raw": raw.addresses[0], "link": linked.addresses[0]})
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await receiver.links.close()
    await linked.close()
    await raw.close()


class Way:
    """One way of sending messages; each is answered when it has come."""

    def __init__(self) -> None:
        self.answered = asyncio.Semaphore(0)

    async def send(self) -> None:
        """Hands over one more message."""
        raise NotImplementedError

    async def run(self, messages: int, ahead: int) -> None:
        for number in range(messages + ahead):
            if number >= ahead:
                await asyncio.wait_for(self.answered.acquire(), _TIMEOUT_S)
            if number < messages:
                await self.send()


class RawWay(Way):
    """Writes as fast as the stream takes it."""

    def __init__(self, stream: ByteStream) -> None:
        super().__init__()
        self._stream = stream
        self._writable = asyncio.Event()
        self._writable.set()
        self._piece = bytes(64 * 1024)
        stream.start(self)

    async def send(self) -> None:
        for _ in range(_MESSAGE_BYTES // len(self._piece)):
            await self._writable.wait()
            if not self._stream.write(self._piece):
                self._writable.clear()

    def bytes_received(self, data: bytes) -> None:
        for _ in data:
            self.answered.release()

    def writable_again(self) -> None:
        self._writable.set()

    def stream_ended(self, reason: str) -> None:
        raise RuntimeError(reason)


class LinkWay(Way):
    def __init__(self, network: Libp2pNetwork, peer: PeerId) -> None:
        super().__init__()
        self.links = Links(network, self)
        self._peer = peer
        self._seq = 0
        self._payload = bytes(_MESSAGE_BYTES)

    async def send(self) -> None:
        tensors = (TensorSpec("hidden", "bfloat16", (_MESSAGE_TOKENS, 1024)),)
        step = Step(_SESSION, 0, self._seq, (0,), (_MESSAGE_TOKENS,), (), (), Want.NONE, tensors)
        self._seq += 1
        self.links.send(self._peer, step, (self._payload,), ServiceClass.PREFILL, _SESSION)

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        self.answered.release()

    def on_link_lost(self, peer: PeerId, reason: str) -> None:
        raise RuntimeError(reason)


async def send(raw: str, link: str) -> None:
    """Reads `{"way": .., "messages": ..}`, says `sent` with the seconds until all had come."""
    raw_network, raw_peer = await _joined(raw)
    link_network, link_peer = await _joined(link)
    stream = await raw_network.dial(raw_peer, _TIMEOUT_S)
    linked = LinkWay(link_network, link_peer)
    await linked.links.start()
    await linked.links.connect(link_peer, _TIMEOUT_S)
    ways: dict[str, Way] = {"raw": RawWay(stream), "link": linked}
    _say({"event": "ready"})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        began = time.monotonic()
        await ways[command["way"]].run(command["messages"], _AHEAD)
        _say({"event": "sent", "seconds": time.monotonic() - began})
    stream.close()
    await linked.links.close()
    await link_network.close()
    await raw_network.close()


async def _joined(address: str) -> tuple[Libp2pNetwork, PeerId]:
    network = await Libp2pNetwork.create(
        Identity.create(), initial_peers=[address], client_only=True
    )
    return network, PeerId(address.rsplit("/", 1)[1])


def measure_bulk(
    network: TestNetwork, shape: Shape | None, seconds: float, turns: int
) -> dict[str, list[dict[str, float]]]:
    """Both ways in turns, for about `seconds` each, over `network` or (None) over loopback."""
    mbit = LOOPBACK_MBIT if shape is None else shape.mbit
    messages = max(4, round(mbit * 1e6 / 8 * seconds / _MESSAGE_BYTES))

    def on(host: int, *arguments: str) -> list[str]:
        command = [sys.executable, str(Path(__file__)), *arguments]
        return command if shape is None else network.command(host, command)

    if shape is not None:
        network.shape(shape)
    host = "127.0.0.1" if shape is None else network.address(0)
    with Program("receiver", on(0, "--receive", host)) as receiver:
        ready = receiver.wait_for("ready")
        with Program("sender", on(1, "--send", ready["raw"], ready["link"])) as sender:
            sender.wait_for("ready")
            processes = [psutil.Process(one.pid) for one in (receiver, sender)]

            def run(way: str) -> dict[str, float]:
                before = _cpu_s(processes)
                sender.send_line(json.dumps({"way": way, "messages": messages}))
                seconds = sender.wait_for("sent", _TIMEOUT_S)["seconds"]
                sent = messages * _MESSAGE_BYTES
                used = _cpu_s(processes) - before
                return {"mbit": sent * 8e-6 / seconds, "cpu_s_per_gb": used / sent * 1e9}

            arms = {"raw": lambda: run("raw"), "link": lambda: run("link")}
            found = in_turns(arms, turns, lambda _: None)
    return {way: [measured.result for measured in of_way] for way, of_way in found.items()}


def _cpu_s(processes: list[psutil.Process]) -> float:
    everyone = [
        one for process in processes for one in [process, *process.children(recursive=True)]
    ]
    times = [one.cpu_times() for one in everyone]
    return float(sum(one.user + one.system for one in times))


def _say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--receive", metavar="HOST")
    parser.add_argument("--send", nargs=2, metavar="ADDRESS")
    options = parser.parse_args()
    asyncio.run(receive(options.receive) if options.receive else send(*options.send))
