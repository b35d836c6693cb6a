"""What a user meets when servers die: a typed error, in seconds, that says what is missing."""

import json
import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from processes import ServerProgram, StartServer, running_servers
from swarm_commands import generate, start_generating, status

PROMPT = "The history of the printing press begins"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[ServerProgram]]:
    """Of these tests alone, in their order: the second one kills what the first one needs."""
    with running_servers(["0:10", "10:20", "20:30"]) as started:
        yield started


def test_a_killed_daemon_is_replaced_and_the_server_serves_on(
    servers: list[ServerProgram],
) -> None:
    address = servers[0].address()
    before = json.loads(generate(address, PROMPT, 6).stdout)
    daemons = [
        child
        for child in psutil.Process(servers[1].pid).children(recursive=True)
        if "p2pd" in child.name()
    ]
    assert len(daemons) == 1
    daemons[0].kill()
    deadline = time.monotonic() + 60
    while True:
        done = generate(address, PROMPT, 6)
        if done.returncode == 0 or time.monotonic() > deadline:
            break
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    assert after["token_ids"] == before["token_ids"]
    assert after["route"] == before["route"]
    assert status(address)["missing"] == []


def test_a_kill_in_mid_generation_and_the_blocks_that_are_missing_then(
    servers: list[ServerProgram],
    start_server: StartServer,
) -> None:
    address = servers[0].address()
    client = start_generating(address, PROMPT, 1500)
    os.kill(servers[1].pid, signal.SIGKILL)
    _, errors = client.communicate(timeout=120)
    assert client.returncode == 1
    assert "10:20" in errors
    assert "Traceback" not in errors

    # Its record may live on for a minute: the next client fails in seconds all the same.
    done = generate(address, PROMPT, 4)
    assert done.returncode == 1
    assert "10:20" in done.stderr
    assert "Traceback" not in done.stderr

    # A replacement makes the swarm whole again.
    start_server("10:20", peers=[address]).wait_online()
    done = generate(address, PROMPT, 4)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["token_ids"]) == 4
