"""What Python code gets when a span's servers are gone: a typed error that names the blocks."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import ServerProgram, StartServer
from tiny_pairs import (
    greedy,
    plain_model,
    some_ids,
)
from transformers import StoppingCriteria

from swarm.errors import MissingBlocksError
from swarm.testing import LocalSwarm

SOON = {
    "missing_timeout_s": 1.0,
    "link_grace_s": 1.0,
    "connect_timeout_s": 2.0,
    "repair_timeout_s": 1.0,
}
"""`ClientSettings` that give up early."""


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> torch.Tensor:
    return greedy(plain_model(tiny_llama), some_ids(5), 6)


class CallAt(StoppingCriteria):  # type: ignore[misc]
    """Calls something once, when so many tokens are there; stops nothing."""

    def __init__(self, length: int, action: Callable[[], None]) -> None:
        self._length, self._action = length, action
        self.done = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if input_ids.shape[1] == self._length and not self.done:
            self.done = True
            self._action()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def generate_and(model: Any, action: Callable[[], None]) -> torch.Tensor:
    """60 tokens of one session; `action` is called after 10 of them."""
    ids, call = some_ids(8), CallAt(18, action)
    try:
        found: torch.Tensor = model.generate(
            ids, max_new_tokens=60, min_new_tokens=60, do_sample=False, stopping_criteria=[call]
        )
    finally:
        assert call.done
    return found


def start_process(start_server: StartServer, swarm: LocalSwarm, span: str) -> ServerProgram:
    """A server that can be killed."""
    options = ["--cache-tokens", "1024"]
    server = start_server(span, model=str(swarm.model), peers=[swarm.address], options=options)
    server.wait_online()
    return server


def kill(server: ServerProgram) -> None:
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait(10)


def check_missing(model: Any, swarm: LocalSwarm, expected: torch.Tensor) -> None:
    """2:3 is missing for this client and for another one, until it is served again."""
    with pytest.raises(MissingBlocksError, match="2:3") as missing:
        greedy(model, some_ids(5), 6)
    assert missing.value.blocks == ("2:3",)
    with swarm.client(by=swarm.servers[1], **SOON) as other:
        with pytest.raises(MissingBlocksError) as missing:
            greedy(other, some_ids(5), 6)
        assert missing.value.blocks == ("2:3",)
        swarm.start("2:3")
        for one in (model, other):
            assert torch.equal(greedy(one, some_ids(5), 6), expected)


def test_the_only_server_of_a_span_stops_in_mid_generation(
    tiny_llama: Path, expected: torch.Tensor
) -> None:
    with (
        LocalSwarm(tiny_llama, "0:2", "3:4", "2:3") as swarm,
        swarm.client(**SOON) as model,
    ):
        assert torch.equal(greedy(model, some_ids(5), 6), expected)
        with pytest.raises(MissingBlocksError, match="2:3"):
            generate_and(model, lambda: swarm.stop(swarm.servers[2]))
        check_missing(model, swarm, expected)


def test_the_only_server_of_a_span_is_killed_in_mid_generation(
    tiny_llama: Path, expected: torch.Tensor, start_server: StartServer
) -> None:
    with (
        LocalSwarm(tiny_llama, "0:2", "3:4", loopback=True) as swarm,
        swarm.client(**SOON) as model,
    ):
        server = start_process(start_server, swarm, "2:3")
        assert torch.equal(greedy(model, some_ids(5), 6), expected)
        with pytest.raises(MissingBlocksError, match="2:3"):
            generate_and(model, lambda: kill(server))
        with pytest.raises(MissingBlocksError) as missing:
            greedy(model, some_ids(5), 6)
        assert missing.value.blocks == ("2:3",)
        swarm.wait_until_free()


def test_all_runs_that_are_missing_are_named(tiny_llama: Path, expected: torch.Tensor) -> None:
    with (
        LocalSwarm(tiny_llama, "1:2", "0:1", "2:4") as swarm,
        swarm.client(**SOON) as model,
    ):
        greedy(model, some_ids(5), 2)
        for server in swarm.servers[1:]:
            swarm.stop(server)
        with pytest.raises(MissingBlocksError) as missing:
            greedy(model, some_ids(5), 2)
        assert missing.value.blocks == ("0:1", "2:4")


def test_a_stopped_replica_is_not_missed(tiny_llama: Path, expected: torch.Tensor) -> None:
    """Two servers for each span: the one that was used goes, the next generation works at once."""
    with (
        LocalSwarm(tiny_llama, "0:2", "2:4", "0:2", "2:4") as swarm,
        swarm.client(missing_timeout_s=0.1) as model,
    ):
        assert torch.equal(greedy(model, some_ids(5), 6), expected)
        used = {hop.peer for hop in model.route}
        stopped = [server for server in swarm.servers if server.peer_id in used]
        assert len(stopped) == 2
        for server in stopped:
            swarm.stop(server)
            assert torch.equal(greedy(model, some_ids(5), 6), expected)
        assert not used & {hop.peer for hop in model.route}


def test_a_killed_replica_is_not_missed(
    tiny_llama: Path, expected: torch.Tensor, start_server: StartServer
) -> None:
    with (
        LocalSwarm(tiny_llama, "0:2", loopback=True) as swarm,
        swarm.client(missing_timeout_s=0.1) as model,
    ):
        server = start_process(start_server, swarm, "2:4")
        assert torch.equal(greedy(model, some_ids(5), 6), expected)
        swarm.start("2:4")
        kill(server)
        found: list[torch.Tensor] = []

        def work() -> None:
            found.append(greedy(model, some_ids(5), 6))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 2
        assert all(torch.equal(one, expected) for one in found)
