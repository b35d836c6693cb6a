"""Cache tokens return to exactly their starting value, however a session ends."""

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import ServerProgram
from swarm_commands import (
    free_tokens,
    generate,
    start_generating,
    status,
    wait_until_free,
)

PROMPT = "The history of the printing press begins"


@pytest.fixture(scope="module")
def address(three_servers: list[ServerProgram]) -> str:
    return three_servers[0].address()


def two_clients(address: str) -> list[subprocess.Popen[str]]:
    """Both in the middle of a long answer, and known to the servers."""
    before = free_tokens(address)
    with ThreadPoolExecutor(2) as pool:
        clients = list(pool.map(lambda _: start_generating(address, PROMPT, 1500), range(2)))
    for row in status(address)["servers"]:
        assert row["sessions"] == 2
        assert row["cache_tokens_free"] < before[row["blocks"]]
    return clients


def test_a_normal_end_gives_everything_back(address: str) -> None:
    before = free_tokens(address)
    done = generate(address, PROMPT, 8)
    assert done.returncode == 0, done.stderr
    wait_until_free(address, before)


def test_ctrl_c_and_sigterm_free_the_session_at_once(address: str) -> None:
    before = free_tokens(address)
    clients = two_clients(address)
    for client, number in zip(clients, (signal.SIGINT, signal.SIGTERM), strict=True):
        client.send_signal(number)
    for client in clients:
        _, errors = client.communicate(timeout=20)
        assert client.returncode == 130
        assert "Traceback" not in errors
    # At once: long before a silent client would be given up. (A status may be half a second old.)
    wait_until_free(address, before, timeout_s=8)


def test_a_killed_client_and_a_frozen_one_are_dropped_after_the_grace_time(address: str) -> None:
    before = free_tokens(address)
    killed, frozen = two_clients(address)
    frozen.send_signal(signal.SIGSTOP)
    try:
        killed.kill()
        killed.communicate(timeout=20)
        wait_until_free(address, before)
    finally:
        frozen.kill()
        frozen.communicate(timeout=20)
