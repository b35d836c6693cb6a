"""What a user meets when servers die: a typed error, in seconds, that says what is missing."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from processes import ServerProgram, StartServer, running_servers
from swarm_commands import IMPATIENT, generate, start_generating, status
from tiny_chat import save_chat_model, tokenizer
from tiny_pairs import plain_model

PROMPT = "The history of the printing press begins"
LONG = 8000
"""Tokens that no client is through with before something happens to it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "patient"
    save_chat_model(folder, positions=2 * LONG)
    return folder


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[list[ServerProgram]]:
    """Of these tests alone, in their order: the second one kills what the first one needs."""
    options = ["--cache-tokens", str(2 * LONG)]
    with running_servers(["0:1", "1:2"], model=str(folder), options=options) as started:
        yield started


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[int]:
    """What the whole model says after `PROMPT`."""
    ids = torch.tensor([tokenizer()(PROMPT).input_ids])
    found = plain_model(folder).generate(ids, max_new_tokens=6, do_sample=False)
    said: list[int] = found[0, ids.shape[1] :].tolist()
    return said


def test_a_killed_daemon_is_replaced_and_the_server_serves_on(
    servers: list[ServerProgram], folder: Path, expected: list[int]
) -> None:
    address = servers[0].address()
    peers = [server.wait_online()["peer"] for server in servers]
    daemons = [
        child
        for child in psutil.Process(servers[1].pid).children(recursive=True)
        if "p2pd" in child.name()
    ]
    assert len(daemons) == 1
    daemons[0].kill()
    deadline = time.monotonic() + 60
    while True:
        done = generate(address, PROMPT, 6, str(folder))
        if done.returncode == 0 or time.monotonic() > deadline:
            break
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    assert after["token_ids"] == expected
    assert [hop["peer"] for hop in after["route"]] == peers
    assert status(address)["missing"] == []


def test_a_kill_in_mid_generation_and_the_blocks_that_are_missing_then(
    servers: list[ServerProgram], folder: Path, expected: list[int], start_server: StartServer
) -> None:
    address = servers[0].address()
    impatient = [sys.executable, "-c", IMPATIENT]
    client = start_generating(address, PROMPT, LONG, str(folder), program=impatient)
    os.kill(servers[1].pid, signal.SIGKILL)
    _, errors = client.communicate(timeout=120)
    assert client.returncode == 1
    assert "1:2" in errors
    assert "Traceback" not in errors

    # Its record may live on for a minute: the next client fails in seconds all the same.
    done = generate(address, PROMPT, 4, str(folder))
    assert done.returncode == 1
    assert "1:2" in done.stderr
    assert "Traceback" not in done.stderr

    # A replacement makes the swarm whole again.
    start_server("1:2", model=str(folder), peers=[address]).wait_online()
    done = generate(address, PROMPT, 4, str(folder))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["token_ids"] == expected[:4]
