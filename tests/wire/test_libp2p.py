"""The real network on loopback, several peers in this process."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from libp2p_peers import Peers, peers, run_in_peace

from swarm.errors import AddressError, UnreachablePeerError
from swarm.wire.daemon import Daemon, DaemonConfig
from swarm.wire.daemon_stream import MAX_PRELUDE_BYTES, split_message, with_length
from swarm.wire.identity import Identity
from swarm.wire.libp2p import Libp2pNetwork
from swarm.wire.network import ByteStream


class Reader:
    """Keeps what a stream brings."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.data = bytearray()
        self.ended: str | None = None
        self.writable = asyncio.Event()
        self._changed = asyncio.Event()
        stream.start(self)

    def bytes_received(self, data: bytes) -> None:
        assert self.ended is None
        self.data += data
        self._changed.set()

    def writable_again(self) -> None:
        self.writable.set()

    def stream_ended(self, reason: str) -> None:
        assert self.ended is None
        self.ended = reason
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def read(self, size: int) -> bytes:
        await self.until(lambda: len(self.data) >= size)
        return bytes(self.data)


class Echo(Reader):
    """Sends back what comes."""

    def bytes_received(self, data: bytes) -> None:
        self.stream.write(data)


async def start_echo(started: Peers) -> Libp2pNetwork:
    network = await started.start()
    network.on_stream = Echo
    return network


def test_a_stream_carries_bytes_both_ways() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await start_echo(started)
            client = await started.start(initial_peers=server.addresses, client_only=True)
            assert client.addresses == []
            assert all(address.endswith(f"/p2p/{server.peer_id}") for address in server.addresses)
            reader = Reader(await client.dial(server.peer_id, 10))
            assert reader.stream.peer == server.peer_id
            assert f"{reader.stream.address}/p2p/{server.peer_id}" in server.addresses
            sent = os.urandom(3_000_000)
            for start in range(0, len(sent), 65536):
                if not reader.stream.write(memoryview(sent)[start : start + 65536]):
                    await reader.writable.wait()
                    reader.writable.clear()
            assert await reader.read(len(sent)) == sent

    run_in_peace(main())


def test_the_other_side_knows_who_dialled_and_sees_the_end() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await started.start()
            came: asyncio.Future[Reader] = asyncio.get_running_loop().create_future()
            server.on_stream = lambda stream: came.set_result(Reader(stream))
            client = await started.start(initial_peers=server.addresses, client_only=True)
            stream = await client.dial(server.peer_id, 10)
            stream.write(b"last words")
            stream.close()
            stream.close()
            assert not stream.write(b"after the end")
            reader = await came
            assert reader.stream.peer == client.peer_id
            assert reader.stream.address.startswith("/ip4/127.0.0.1/tcp/")
            await reader.until(lambda: reader.ended is not None)
            assert reader.data == b"last words"

    run_in_peace(main())


def test_bytes_that_come_before_start_are_kept() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await started.start()
            came: asyncio.Queue[ByteStream] = asyncio.Queue()
            server.on_stream = came.put_nowait
            client = await started.start(initial_peers=server.addresses, client_only=True)
            stream = await client.dial(server.peer_id, 10)
            stream.write(b"a" * 1000)
            waiting = await came.get()
            stream.write(b"b" * 1000)
            echo = Reader(stream)
            waiting.write(b"answer")
            await echo.read(6)  # all that was sent before has reached the other daemon
            reader = Reader(waiting)
            assert reader.data == b""
            assert await reader.read(2000) == b"a" * 1000 + b"b" * 1000

    run_in_peace(main())


def test_last_words_are_out_before_the_network_is_gone() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await started.start()
            came: asyncio.Future[Reader] = asyncio.get_running_loop().create_future()
            server.on_stream = lambda stream: came.set_result(Reader(stream))
            client = await started.start(initial_peers=server.addresses, client_only=True)
            stream = await client.dial(server.peer_id, 10)
            stream.write(b"goodbye")
            stream.close()
            await client.close()
            await client.close()
            reader = await came
            await reader.until(lambda: reader.ended is not None)
            assert reader.data == b"goodbye"

    run_in_peace(main())


def test_peers_that_cannot_be_reached() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await start_echo(started)
            client = await started.start(initial_peers=server.addresses, client_only=True)
            stranger = Identity.create().peer_id
            with pytest.raises(UnreachablePeerError, match=f"cannot reach {stranger}"):
                await client.dial(stranger, 5)
            client.add_addresses(stranger, ["/ip4/127.0.0.1/tcp/9", "nonsense"])
            with pytest.raises(UnreachablePeerError, match=r"at /ip4/127\.0\.0\.1/tcp/9:"):
                await client.dial(stranger, 5)
            with pytest.raises(UnreachablePeerError):
                await server.dial(client.peer_id, 5)  # clients take no streams
            dead = f"/ip4/127.0.0.1/tcp/9/p2p/{stranger}"
            with pytest.raises(UnreachablePeerError, match="is one of them running"):
                await started.start(initial_peers=[dead])

    run_in_peace(main())


def test_addresses_from_records_lead_to_peers_that_libp2p_does_not_know() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await start_echo(started)
            other = await started.start()  # not of the same network
            with pytest.raises(UnreachablePeerError):
                await other.dial(server.peer_id, 5)
            other.add_addresses(server.peer_id, server.addresses)
            reader = Reader(await other.dial(server.peer_id, 5))
            reader.stream.write(b"found")
            assert await reader.read(5) == b"found"
            assert await other.connect(server.addresses[0], 5)

    run_in_peace(main())


def test_the_folder_of_a_process_that_was_killed_is_removed_and_others_are_kept() -> None:
    async def main() -> None:
        async with peers() as started:
            temporary = Path(tempfile.gettempdir())
            first = await started.start()
            living = Path(first.p2p.daemon_listen_maddr["unix"]).parent
            assert (living / "lock").exists() and not (living / "identity").exists()
            abandoned = temporary / "swarm-abandoned"
            abandoned.mkdir()
            (abandoned / "lock").touch()
            strangers = temporary / "swarm-plans"
            strangers.mkdir()
            second = await started.start(initial_peers=first.addresses)
            assert not abandoned.exists()
            assert living.exists() and strangers.exists()
            strangers.rmdir()
            assert await second.connect(first.addresses[0], 10)

    run_in_peace(main())


def test_a_port_in_use_and_bad_addresses_are_refused() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await started.start()
            taken = server.addresses[0].split("/p2p/")[0]
            with pytest.raises(AddressError, match="in use"):
                await started.start(listen=[taken])
            with pytest.raises(AddressError, match="is not a multiaddress"):
                await started.start(listen=["localhost"])
            with pytest.raises(AddressError, match="does not name its peer"):
                await started.start(initial_peers=[taken])
            with pytest.raises(AddressError, match="is not a multiaddress"):
                await started.start(announce=["example.org:1"])

    run_in_peace(main())


def test_the_announced_address_is_shown_instead() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await started.start(announce=["/ip4/127.0.0.1/tcp/4321"])
            assert server.addresses == [f"/ip4/127.0.0.1/tcp/4321/p2p/{server.peer_id}"]

    run_in_peace(main())


def test_a_killed_daemon_is_rebuilt_at_the_same_place() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await start_echo(started)
            client = await started.start(initial_peers=server.addresses, client_only=True)
            reader = Reader(await client.dial(server.peer_id, 10))
            reader.stream.write(b"before")
            await reader.read(6)
            addresses, pid = server.addresses, server.daemon_pid
            assert pid is not None
            for broken in (server, client):
                rebuilt = asyncio.Event()

                async def note(event: asyncio.Event = rebuilt) -> None:
                    event.set()

                async def fail() -> None:
                    raise RuntimeError("a callback that fails does not stop the others")

                broken.on_rebuilt[:] = [fail, note]
                killed = broken.daemon_pid
                assert killed is not None
                os.kill(killed, signal.SIGKILL)
                await reader.until(lambda last=reader: last.ended is not None)
                await rebuilt.wait()
                assert broken.daemon_pid != killed
                assert server.addresses == addresses
                reader = Reader(await client.dial(server.peer_id, 10))
                reader.stream.write(b"again")
                assert await reader.read(5) == b"again"
            assert (server.rebuilds, client.rebuilds) == (1, 1)

    run_in_peace(main())


def told_when_rebuilt(network: Libp2pNetwork) -> asyncio.Event:
    rebuilt = asyncio.Event()

    async def tell() -> None:
        rebuilt.set()

    network.on_rebuilt[:] = [tell]
    return rebuilt


def test_a_daemon_that_is_killed_again_and_again_is_rebuilt_each_time() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await start_echo(started)
            client = await started.start(initial_peers=server.addresses, client_only=True)
            for _ in range(2):
                rebuilt = told_when_rebuilt(client)
                assert client.daemon_pid is not None
                os.kill(client.daemon_pid, signal.SIGKILL)
                await rebuilt.wait()
            reader = Reader(await client.dial(server.peer_id, 30))
            reader.stream.write(b"alive")
            assert await reader.read(5) == b"alive"

    run_in_peace(main())


def test_the_watch_goes_on_whatever_hivemind_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure

        async with peers() as started:
            server = await started.start()
            learn, failures = server._learn_addresses, [ControlFailure("no"), RuntimeError("odd")]

            async def fail_twice(daemon: Daemon) -> None:
                if failures:
                    raise failures.pop()
                await learn(daemon)

            monkeypatch.setattr(server, "_learn_addresses", fail_twice)
            assert server.daemon_pid is not None
            rebuilt = told_when_rebuilt(server)
            os.kill(server.daemon_pid, signal.SIGKILL)
            await rebuilt.wait()
            assert not failures and server.daemon_pid is not None

    run_in_peace(main())


def test_a_frozen_daemon_is_killed_and_rebuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.wire.libp2p.REMEMBER_EVERY_S", 0.1)
    monkeypatch.setattr("swarm.wire.libp2p.CONTROL_TIMEOUT_S", 1.0)

    async def main() -> None:
        async with peers() as started:
            server = await start_echo(started)
            frozen, addresses = server.daemon_pid, server.addresses

            async def check_rarely() -> None:
                monkeypatch.setattr("swarm.wire.libp2p.REMEMBER_EVERY_S", 1000.0)

            assert frozen is not None
            os.kill(frozen, signal.SIGSTOP)
            rebuilt = told_when_rebuilt(server)
            server.on_rebuilt.append(check_rarely)
            await rebuilt.wait()
            assert server.daemon_pid != frozen and server.addresses == addresses
            client = await started.start(initial_peers=server.addresses, client_only=True)
            reader = Reader(await client.dial(server.peer_id, 30))
            reader.stream.write(b"thawed")
            assert await reader.read(6) == b"thawed"

    run_in_peace(main())


def test_the_addresses_of_those_named_longest_ago_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swarm.wire.libp2p.MAX_KNOWN_PEERS", 2)
    network = Libp2pNetwork(Identity.create(), DaemonConfig((), (), True, 1.0), [])
    first, second, third = (Identity.create().peer_id for _ in range(3))
    for peer in (first, second, first, third):
        network.add_addresses(peer, ["/ip4/127.0.0.1/tcp/9"])
    assert set(network._known) == {first, third}


_JUST_ENDS = """
import logging
from swarm.client.runtime import runtime
from swarm.wire.identity import Identity
from swarm.wire.libp2p import Libp2pNetwork

logging.basicConfig()
network = runtime().run(Libp2pNetwork.create(Identity.create()))
runtime().close_at_exit(network, network.close)
print(network.daemon_pid, flush=True)
"""


def test_a_program_that_just_ends_leaves_nothing_and_says_nothing(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _JUST_ENDS],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert list(tmp_path.glob("swarm-*")) == []
    assert not psutil.pid_exists(int(ended.stdout))


def test_a_dial_waits_for_the_daemon_that_is_being_rebuilt() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await start_echo(started)
            client = await started.start(initial_peers=server.addresses, client_only=True)
            killed = client.daemon_pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            reader = Reader(await client.dial(server.peer_id, 30))
            reader.stream.write(b"late")
            assert await reader.read(4) == b"late"

    run_in_peace(main())


def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    async def main() -> None:
        for wait_s in (0.0, 0.03, 0.1):
            starting = asyncio.create_task(Libp2pNetwork.create(Identity.create()))
            await asyncio.sleep(wait_s)
            starting.cancel()
            result = await asyncio.gather(starting, return_exceptions=True)
            if isinstance(result[0], Libp2pNetwork):
                await result[0].close()

    run_in_peace(main())


def test_the_daemon_does_not_share_our_terminals_signals() -> None:
    async def main() -> None:
        async with peers() as started:
            server = await started.start()
            assert server.daemon_pid is not None
            assert os.getpgid(server.daemon_pid) != os.getpgid(0)

    run_in_peace(main())


def test_nothing_is_printed_and_nothing_of_the_process_is_changed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def main() -> None:
        async with peers() as started:
            server = await start_echo(started)
            await started.start(initial_peers=server.addresses, client_only=True)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_in_peace(main())
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert logging.getLevelName(logging.WARNING) == "WARNING"
    assert capfd.readouterr() == ("", "")


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
