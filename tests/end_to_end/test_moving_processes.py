"""Five `swarm-server` processes that are told no blocks, on the embedded model of 30 blocks."""

import json
import os
import signal
import threading
import time

import pytest
from processes import ServerProgram, StartServer
from swarm_commands import generate, status

from swarm.spans import Span, missing_spans

CHECK_S = 6
BLOCKS = 30
PROMPT = "The history of the printing press begins"
DEADLINE_S = 150.0


def online(address: str) -> dict[str, Span]:
    found = status(address)["servers"]
    return {one["peer"]: Span.parse(one["blocks"]) for one in found if one["state"] == "online"}


def until_whole(address: str) -> dict[str, Span]:
    """Waits; which server then hosts what."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        spans = online(address)
        if not missing_spans(list(spans.values()), BLOCKS):
            return spans
        assert time.monotonic() < deadline, spans
        time.sleep(0.5)


def moves(servers: list[ServerProgram]) -> list[int]:
    return [sum(e.get("event") == "moving" for e in server.events) for server in servers]


@pytest.mark.matrix
def test_servers_cover_the_model_again_when_one_is_killed_and_when_a_faster_one_joins(
    start_server: StartServer,
) -> None:
    options = ["--max-memory", "130MB", "--cache-tokens", "512", "--move-check", str(CHECK_S)]
    first = start_server(options=options)
    address = first.address()
    servers = [first, *(start_server(peers=[address], options=options) for _ in range(4))]
    for server in servers:
        server.wait_online()
    spans = until_whole(address)
    assert all(len(span) < BLOCKS / 2 for span in spans.values()), spans

    expected = json.loads(generate(address, PROMPT, 24).stdout)["token_ids"]
    ends, faults, done = threading.Event(), [], []

    def work() -> None:
        while not ends.is_set():
            made = generate(address, PROMPT, 24)
            if made.returncode != 0 or json.loads(made.stdout)["token_ids"] != expected:
                faults.append(made.stdout + made.stderr)
                return
            done.append(1)

    user = threading.Thread(target=work)
    user.start()
    try:
        peers = {server: server.address().rpartition("/")[2] for server in servers[1:]}
        needed = [
            server
            for server, peer in peers.items()
            if missing_spans([s for p, s in spans.items() if p != peer], BLOCKS)
        ]
        os.kill(needed[0].pid, signal.SIGKILL)
        time.sleep(1)
        until_whole(address)
        servers.append(start_server(peers=[address], options=[*options, "--max-memory", "260MB"]))
        servers[-1].wait_online()
        until_whole(address)
        before = moves(servers)
        time.sleep(10 * CHECK_S)
        assert all(now - then <= 1 for now, then in zip(moves(servers), before, strict=True))
        assert until_whole(address)
    finally:
        ends.set()
        user.join(180)
    assert not faults, faults
    assert done
    assert sum(moves(servers)) >= 1
