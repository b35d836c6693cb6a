"""Caches that are too small for all who come: waiting in line, deadlines, no deadlock, no leaks."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import ServerProgram, StartServer
from tiny_pairs import (
    greedy,
    joined_by,
    plain_model,
    some_ids,
)

from swarm.errors import CacheFullError
from swarm.testing import LocalSwarm

ROOM = 128
"""Cache tokens of each server here: two pages of 64."""


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> torch.Tensor:
    return greedy(plain_model(tiny_llama), some_ids(8), 12)


@pytest.fixture(scope="module")
def swarm(tiny_llama: Path) -> Iterator[LocalSwarm]:
    with LocalSwarm(tiny_llama, "0:2", "2:4", cache_tokens=ROOM) as swarm:
        yield swarm


def in_line(swarm: LocalSwarm) -> int:
    return sum(server.status()["sessions_in_line"] for server in swarm.servers)


def test_who_finds_no_room_waits_until_there_is_some(
    swarm: LocalSwarm, expected: torch.Tensor
) -> None:
    with swarm.client() as model, ThreadPoolExecutor(1) as pool:
        with model.session(max_length=ROOM):
            greedy(model, some_ids(8), 2)
            assert [status["cache_tokens_free"] for status in swarm.statuses()] == [0, 0]
            waiting = pool.submit(greedy, model, some_ids(8), 12)
            swarm.wait_until(lambda: in_line(swarm) > 0)
            assert not waiting.done()
        assert torch.equal(waiting.result(60), expected)
        swarm.wait_until_free()


def test_who_waits_too_long_is_told(
    tiny_llama: Path, swarm: LocalSwarm, expected: torch.Tensor
) -> None:
    with (
        swarm.client() as model,
        swarm.client(open_timeout_s=1.0) as hasty,
    ):
        with model.session(max_length=ROOM):
            told = greedy(model, some_ids(8), 2)
            with pytest.raises(CacheFullError, match="no room within") as full:
                greedy(hasty, some_ids(8), 12)
            assert full.value.blocks in ("0:2", "2:4")
            assert full.value.peer in {server.peer_id for server in swarm.servers}
            # The one who has the room has noticed nothing.
            assert torch.equal(greedy(model, told, 10), expected)
        assert torch.equal(greedy(hasty, some_ids(8), 12), expected)
        swarm.wait_until_free()
        assert all(status["sessions_in_line"] == 0 for status in swarm.statuses())


def test_a_session_that_nobody_uses_gives_way_and_goes_on_in_another(
    swarm: LocalSwarm, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm.server.unused_sessions.UNUSED_S", 0.5)
    with swarm.client() as model, swarm.client(open_timeout_s=30.0) as other:
        with model.session(max_length=ROOM):
            told = greedy(model, some_ids(8), 2)
            assert torch.equal(greedy(other, some_ids(8), 12), expected)
            assert torch.equal(greedy(model, told, 10), expected)
        swarm.wait_until_free()


def test_more_than_there_ever_is(swarm: LocalSwarm) -> None:
    with (
        swarm.client(open_timeout_s=1.0) as model,
        pytest.raises(CacheFullError, match="fewer tokens"),
    ):
        greedy(model, some_ids(8), ROOM)


def test_clients_that_open_against_each_other_all_finish(
    swarm: LocalSwarm, expected: torch.Tensor
) -> None:
    """Each needs all the room of both servers, again and again, at the same time."""
    barrier = threading.Barrier(3)

    def work(number: int) -> list[torch.Tensor]:
        # Settings of its own, so that it is a client of its own.
        with swarm.client(open_timeout_s=60.0 + number) as model:
            barrier.wait()
            found = []
            for _ in range(5):
                with model.session(max_length=ROOM):
                    found.append(greedy(model, some_ids(8), 12))
            return found

    with ThreadPoolExecutor(3) as pool:
        rounds = list(pool.map(work, range(3)))
    assert [len(found) for found in rounds] == [5, 5, 5]
    assert all(torch.equal(one, expected) for found in rounds for one in found)
    swarm.wait_until_free()


COUNTED = ("tasks", "open_files", "streams")
BOOKED = ("sessions", "sessions_in_line", "cache_tokens_free")
Counts = dict[str, Any]


def counts(server: ServerProgram) -> Counts:
    """Of the next statistics."""
    stats = server.wait_for("stats")
    return {name: stats[name] for name in (*COUNTED, *BOOKED)}


def calm(server: ServerProgram) -> Counts:
    """Once the clients are gone: what the server is left with, twice in a row the same."""
    server.forget_events()
    last: Counts = {}
    for _ in range(100):
        found = counts(server)
        if found == last and found["streams"] <= 1:
            return found
        last = found
    raise AssertionError(f"not calm: {last}")


def back_at(server: ServerProgram, before: Counts) -> None:
    """Waits until the server has no more of anything than before."""
    server.forget_events()
    found: Counts = {}
    for _ in range(100):
        found = counts(server)
        if all(found[name] <= before[name] for name in COUNTED) and all(
            found[name] == before[name] for name in BOOKED
        ):
            return
    raise AssertionError(f"left behind: {found}, before {before}")


def test_twenty_generations_leave_no_task_and_no_open_file(
    tiny_llama: Path, start_server: StartServer, expected: torch.Tensor
) -> None:
    options = ["--stats", "0.3", "--cache-tokens", "512"]
    first = start_server("0:2", model=str(tiny_llama), options=options)
    second = start_server("2:4", model=str(tiny_llama), peers=[first.address()], options=options)
    servers = [first, second]
    for server in servers:
        server.wait_online()

    def use(model: Any, times: int) -> None:
        for _ in range(times):
            assert torch.equal(greedy(model, some_ids(8), 12), expected)

    def leave_half_way(model: Any) -> None:
        session = model.session(max_length=64)
        model.generate(some_ids(8), max_new_tokens=2, session=session)

    # The first client makes the servers meet each other.
    with joined_by(first.address(), tiny_llama) as model:
        use(model, 1)
    before = [calm(server) for server in servers]
    with joined_by(first.address(), tiny_llama) as model:
        use(model, 10)
    for _ in range(2):
        with joined_by(second.address(), tiny_llama) as model:
            use(model, 5)
            leave_half_way(model)
    for server, counted in zip(servers, before, strict=True):
        back_at(server, counted)
