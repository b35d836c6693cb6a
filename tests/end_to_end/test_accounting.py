"""Cache tokens return to exactly their starting value, however a session ends."""

import signal

import pytest
from processes import ServerProgram
from swarm_commands import (
    free_tokens,
    generate,
    start_generating,
    wait_until_free,
)

PROMPT = "The history of the printing press begins"


@pytest.fixture(scope="module")
def address(three_servers: list[ServerProgram]) -> str:
    return three_servers[0].address()


def test_a_normal_end_gives_everything_back(address: str) -> None:
    before = free_tokens(address)
    done = generate(address, PROMPT, 8)
    assert done.returncode == 0, done.stderr
    wait_until_free(address, before)


def test_ctrl_c_frees_the_session_at_once(address: str) -> None:
    before = free_tokens(address)
    client = start_generating(address, PROMPT, 1500)
    during = free_tokens(address)
    assert all(during[blocks] < before[blocks] for blocks in before)
    client.send_signal(signal.SIGINT)
    _, errors = client.communicate(timeout=20)
    assert client.returncode == 130
    assert "Traceback" not in errors
    # At once: long before a silent client would be given up. (A status may be half a second old.)
    wait_until_free(address, before, timeout_s=8)


def test_a_killed_client_leaves_nothing_behind(address: str) -> None:
    before = free_tokens(address)
    client = start_generating(address, PROMPT, 1500)
    client.kill()
    client.communicate(timeout=20)
    wait_until_free(address, before)


def test_a_frozen_client_is_dropped_after_the_grace_time(address: str) -> None:
    before = free_tokens(address)
    client = start_generating(address, PROMPT, 1500)
    client.send_signal(signal.SIGSTOP)
    try:
        wait_until_free(address, before)
    finally:
        client.kill()
        client.communicate(timeout=20)
