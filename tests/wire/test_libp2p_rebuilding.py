"""A daemon that is killed or frozen is rebuilt at the same place, and dials wait for it."""

import asyncio
import os
import signal

import pytest
from libp2p_peers import peers, run_in_peace
from stream_readers import Reader, start_echo

from swarm.wire.daemon import Daemon
from swarm.wire.libp2p import Libp2pNetwork


def told_when_rebuilt(network: Libp2pNetwork) -> asyncio.Event:
    rebuilt = asyncio.Event()

    async def tell() -> None:
        rebuilt.set()

    network.on_rebuilt[:] = [tell]
    return rebuilt


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
