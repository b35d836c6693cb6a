"""The real network on loopback, several peers in this process."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from libp2p_peers import peers, run_in_peace
from stream_readers import Reader, start_echo

from swarm.errors import AddressError, UnreachablePeerError
from swarm.wire.identity import Identity
from swarm.wire.known_peers import KnownPeers
from swarm.wire.libp2p import Libp2pNetwork
from swarm.wire.network import ByteStream

# ---- streams


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


def test_last_words_are_out_before_the_network_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon is stopped when it has taken them; on a busy machine it may need longer than is
    waited to send them on, so it is given that time here."""
    monkeypatch.setattr("swarm.wire.daemon_stream.CLOSE_GRACE_S", 60.0)

    async def main() -> None:
        async with peers() as started:
            server = await started.start()
            came: asyncio.Future[Reader] = asyncio.get_running_loop().create_future()
            server.on_stream = lambda stream: came.set_result(Reader(stream))
            client = await started.start(initial_peers=server.addresses, client_only=True)
            stop = client._stop_daemon

            async def stop_when_they_are_there() -> None:
                assert client._control is not None and not client._control._streams
                reader = await came
                await reader.until(lambda: reader.ended is not None)
                assert reader.data == b"goodbye"
                await stop()

            monkeypatch.setattr(client, "_stop_daemon", stop_when_they_are_there)
            stream = await client.dial(server.peer_id, 10)
            stream.write(b"goodbye")
            stream.close()
            await client.close()
            await client.close()
            assert came.done()

    run_in_peace(main())


# ---- addresses


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


def test_the_addresses_of_those_named_longest_ago_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swarm.wire.known_peers.MAX_TOLD_PEERS", 2)
    known = KnownPeers([])
    first, second, third = (Identity.create().peer_id for _ in range(3))
    for peer in (first, second, first, third):
        known.told(peer, ["/ip4/127.0.0.1/tcp/9", "nonsense"])
    assert known.addresses(first) == known.addresses(third) == ("/ip4/127.0.0.1/tcp/9",)
    assert known.addresses(second) == ()


def test_a_peer_that_was_met_at_an_odd_address_can_still_be_joined_by() -> None:
    known = KnownPeers([])
    peer = Identity.create().peer_id
    odd = [
        "/ip6zone/eth0/ip6/fe80::1/tcp/9",
        "/ip4/127.0.0.1/udp/9/quic-v1/webtransport/certhash/uE",
    ]
    known.met(peer, [*odd, "/ip4/127.0.0.1/tcp/9"])
    assert known.bootstrap_peers() == [f"/ip4/127.0.0.1/tcp/9/p2p/{peer}"]
    known.met(peer, odd)
    assert known.bootstrap_peers() == []


# ---- the process that it runs in


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


_JUST_ENDS = """
import logging
from swarm.client.runtime import runtime
from swarm.wire.identity import Identity
from swarm.wire.libp2p import Libp2pNetwork

logging.basicConfig()
network = runtime().run(Libp2pNetwork.create(Identity.create()))
runtime().close_at_exit(network, network.close, 10)
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
