"""Servers that are reached through relays only: relays end and come back, links are cut."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from generations import generate, plain_ids
from processes import Program, ServerProgram, command_line
from real_servers import PROMPT, Servers, check
from relays import RelayedServer, RelayProgram
from tiny_pairs import some_ids

from swarm.testing import LocalSwarm
from swarm.wire.addresses import with_fixed_port

TOKENS = 24
LOOPBACK = "/ip4/127.0.0.1/tcp/"


def after(seconds: float, action: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def connections(relay: RelayProgram) -> int:
    return sum(event["event"] == "connected" for event in relay.events)


def test_a_relay_that_ends_and_is_started_again(tiny_llama: Path) -> None:
    """Everybody has come through it, and nobody else serves its server's blocks."""
    ids = some_ids(9)
    here = with_fixed_port(f"{LOOPBACK}0")
    with RelayProgram(int(here.removeprefix(LOOPBACK))) as relay:
        second: list[RelayProgram] = []

        def end() -> None:
            relay.process.kill()
            relay.process.wait()
            second.append(RelayProgram(relay.target_port, relay.port))

        try:
            with LocalSwarm(tiny_llama, loopback=True) as swarm:
                swarm.start("0:2", listen=(here,), announce=(f"{LOOPBACK}{relay.port}",))
                swarm.start("2:4")
                with swarm.client() as model:
                    found = generate(model, ids, TOKENS, {10: end})
                assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))
                assert connections(relay) >= 2
                assert connections(second[0]) >= 1
                swarm.wait_until_free()
        finally:
            for one in second:
                one.stop()


@pytest.fixture(scope="module")
def halves() -> Iterator[Servers]:
    """One server of each half."""
    with Servers("0:15", "15:30", copies=1, kind=RelayedServer) as servers:
        yield servers


@pytest.fixture(scope="module")
def six_servers() -> Iterator[Servers]:
    with Servers("0:10", "10:20", "20:30", kind=RelayedServer) as servers:
        yield servers


@pytest.fixture
def thirds(six_servers: Servers) -> Iterator[Servers]:
    """Two servers of each third; what is cut is whole again afterwards."""
    yield six_servers
    heal(six_servers)


def heal(servers: Servers) -> None:
    for server in servers.all:
        server.relay.heal()


@pytest.mark.matrix
@pytest.mark.parametrize("seconds", [0.0, 3.0, 12.0])
@pytest.mark.parametrize("index", [0, 1])
def test_a_relay_that_is_gone_for_a_while(halves: Servers, index: int, seconds: float) -> None:
    """Also for longer than links and sessions are kept."""
    with halves.model(repair_timeout_s=150.0) as model:
        timers = []

        def end() -> None:
            server = halves.hop(model, index)
            server.end_relay()
            timers.append(after(seconds, server.start_relay))

        check(model, PROMPT, {10: end}, TOKENS)
        timers[0].join()
        assert connections(halves.hop(model, index).relay) >= 1
        check(model, PROMPT, {}, 4)


@pytest.mark.matrix
def test_a_bootstrap_peer_that_is_started_again(
    start_program: Callable[[str, list[str]], Program], tmp_path: Path
) -> None:
    """Its address is the only one that anybody was told."""
    command = [*command_line("swarm-dht"), "--listen", with_fixed_port(f"{LOOPBACK}0")]
    command += ["--json-logs", "--identity", str(tmp_path / "key")]
    first = start_program("dht", command)
    address = str(first.wait_for("listening")["address"])

    def start(blocks: str, peers: tuple[str, ...]) -> ServerProgram:
        return ServerProgram(blocks=blocks, peers=[address])

    with Servers("0:15", "15:30", copies=1, kind=start) as servers:
        with servers.model(address) as model:
            timers, again = [], []

            def end() -> None:
                first.process.kill()
                first.stop()
                timers.append(after(2.0, lambda: again.append(start_program("dht", command))))

            check(model, PROMPT, {10: end}, TOKENS)
            timers[0].join()
            assert again[0].wait_for("listening")["address"] == address
            check(model, PROMPT, {}, 4)
        with servers.model(address, window=4) as fresh:
            check(fresh, PROMPT, {}, 4)


@pytest.mark.matrix
@pytest.mark.parametrize("index", [1, 2])
def test_a_link_between_two_hops_that_is_cut(thirds: Servers, index: int) -> None:
    """Each of the two lives, and the client hears both."""
    with thirds.model() as model:
        route: list[Any] = []

        def cut() -> None:
            route.extend(model.route)
            thirds.hop(model, index - 1).cut_from(thirds.hop(model, index))

        check(model, PROMPT, {10: cut}, TOKENS)
        assert model.route != tuple(route)
        check(model, PROMPT, {}, 4)


def daemon_of_client(model: Any) -> psutil.Process:
    return psutil.Process(model._remote.close.__self__.get()[1]._network.daemon_pid)


@pytest.mark.matrix
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_link_of_the_client_that_is_cut(thirds: Servers, index: int) -> None:
    with thirds.model() as model:
        cut: list[Any] = []

        def event() -> None:
            cut.append(thirds.hop(model, index))
            cut[0].relay.cut(daemon_of_client(model))

        # A step does not need the client's link to the middle hop: time for it to be given up.
        check(model, PROMPT, {10: event, 12: lambda: time.sleep(12.0)}, TOKENS)
        assert thirds.hop(model, index) is not cut[0]


@pytest.mark.matrix
@pytest.mark.parametrize("seconds", [3.0, 14.0])
def test_a_client_that_is_cut_off_from_everybody(thirds: Servers, seconds: float) -> None:
    with thirds.model(repair_timeout_s=150.0) as model:
        timers = []

        def cut() -> None:
            for server in thirds.all:
                server.relay.cut(daemon_of_client(model))
            timers.append(after(seconds, lambda: heal(thirds)))

        check(model, PROMPT, {10: cut}, TOKENS)
        timers[0].join()
