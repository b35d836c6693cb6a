"""Servers that choose their blocks themselves, whole ones in memory: they cover every block, and
cover them again when one is killed or joins, while a user generates."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny
from transformers import AutoModelForCausalLM as PlainAutoModel

from swarm.client import improving
from swarm.errors import CheckpointError
from swarm.models.checkpoint import open_checkpoint
from swarm.server import hosted, residence
from swarm.server.events import ServerEvent
from swarm.server.hosted import Hosted, Plan
from swarm.server.hosting import memory_needs
from swarm.server.server import Server
from swarm.server.speed import Speed
from swarm.spans import Span, missing_spans
from swarm.testing import LocalSwarm

BLOCKS = 30
CACHE_TOKENS = 1024
CHECK_S = 3.0
IDS = torch.arange(5, 13)[None]
TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 30 small blocks."""
    folder = tmp_path_factory.mktemp("models") / "thirty-blocks"
    save_tiny("llama", folder, blocks=BLOCKS)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> torch.Tensor:
    return greedy(PlainAutoModel.from_pretrained(folder, dtype=torch.float32))


def greedy(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.generate(
        IDS, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
    )
    return found


class Volunteers:
    """Servers that are told how much memory they may take, and nothing else."""

    def __init__(self, swarm: LocalSwarm, folder: Path) -> None:
        self.swarm = swarm
        self.events: list[tuple[float, Server | int, ServerEvent]] = []
        needs = memory_needs(open_checkpoint(str(folder)), torch.float32)
        self._block_bytes = max(needs.block_bytes) + CACHE_TOKENS * needs.token_bytes_per_block

    def start(self, blocks: int) -> Server:
        number = len(self.swarm.servers)

        def heard(event: ServerEvent) -> None:
            self.events.append((time.monotonic(), number, event))

        return self.swarm.start(max_memory=int((blocks + 0.5) * self._block_bytes), on_event=heard)

    @property
    def moves(self) -> list[ServerEvent]:
        return [event for _, _, event in self.events if event.event == "moving"]

    def story(self) -> str:
        """Who was where, and when it went."""
        return "\n".join(
            f"{at - self.events[0][0]:.1f} s: {who}: {event.text}"
            for at, who, event in self.events
            if event.event in ("moving", "online", "notice")
        )

    def missing(self) -> list[Span]:
        online = [s.span for s in self.swarm.servers if s.state == "online"]
        return missing_spans(online, BLOCKS)

    def busiest(self, since: float) -> int:
        """The most moves of one server since then."""
        moved = Counter(who for at, who, one in self.events if one.event == "moving" and at > since)
        return max(moved.values(), default=0)


@contextmanager
def generating(model: Any, expected: torch.Tensor) -> Iterator[Callable[[], int]]:
    """Generates again and again until the end, which fails if one generation failed."""
    ends, done, faults = threading.Event(), [], []

    def work() -> None:
        while not ends.is_set():
            try:
                assert torch.equal(greedy(model), expected)
                done.append(1)
            except BaseException as error:
                faults.append(error)
                return
            ends.wait(0.3)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield lambda: len(done)
    finally:
        ends.set()
        thread.join(120)
    assert not faults, faults
    assert done


@pytest.mark.parametrize("checks", [3, pytest.param(10, marks=pytest.mark.matrix)])
def test_volunteers_cover_every_block_again_and_no_generation_fails(
    folder: Path, expected: torch.Tensor, checks: int
) -> None:
    """At the end no server moves twice within so many checks."""
    with LocalSwarm(
        folder, cache_tokens=CACHE_TOKENS, move_check_s=CHECK_S, drain_timeout_s=10.0
    ) as swarm:
        volunteers = Volunteers(swarm, folder)
        volunteers.start(8)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(volunteers.start, [8, 8, 8, 8]))
        assert all(len(server.span) == 8 for server in swarm.servers)
        swarm.wait_until(lambda: not volunteers.missing())

        with (
            swarm.client(repair_timeout_s=90.0, missing_timeout_s=60.0, link_grace_s=0.5) as model,
            generating(model, expected) as count,
        ):
            swarm.wait_until(lambda: count() >= 2)
            victim = only_holder(swarm)
            began = len(volunteers.moves)
            swarm.kill(victim)
            swarm.wait_until(lambda: not volunteers.missing())
            assert len(volunteers.moves) > began
            before = count()
            swarm.wait_until(lambda: count() >= before + 2)
            volunteers.start(14)
            before = count()
            swarm.wait_until(lambda: count() >= before + 2)
            quiet_since = time.monotonic()
            time.sleep(checks * CHECK_S)
            assert not volunteers.missing()
        assert volunteers.busiest(quiet_since) <= 1, volunteers.story()
        moved = volunteers.moves[0]
        assert moved.text.startswith(f"moving to blocks {moved.fields['blocks']} because ")
        swarm.wait_until_free()


def test_who_cannot_load_the_blocks_that_are_missing_serves_its_old_ones_and_tries_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_span, broken = residence.load_span, []

    async def load(plan: Plan, span: Span, *others: Any) -> Hosted:
        if span in broken:
            broken.remove(span)
            raise CheckpointError(f"blocks {span} are damaged here")
        return await load_span(plan, span, *others)

    monkeypatch.setattr(residence, "load_span", load)
    with LocalSwarm(
        folder, cache_tokens=CACHE_TOKENS, move_check_s=CHECK_S, drain_timeout_s=1.0
    ) as swarm:
        volunteers = Volunteers(swarm, folder)
        for _ in range(4):
            volunteers.start(15)
        assert Counter(str(one.span) for one in swarm.servers) == {"0:15": 2, "15:30": 2}
        span = swarm.servers[1].span
        broken.append(span)
        for server in [one for one in swarm.servers[1:] if one.span == span]:
            swarm.kill(server)
        swarm.wait_until(lambda: not broken and not volunteers.missing())
        told = [event.text for _, _, event in volunteers.events]
        assert any(text.startswith("staying with blocks ") and "damaged" in text for text in told)
        assert len(volunteers.moves) == 2


def only_holder(swarm: LocalSwarm) -> Server:
    """A server without which blocks are missing; not the one by which clients join."""
    for server in swarm.servers[1:]:
        others = [one.span for one in swarm.servers if one is not server]
        if missing_spans(others, BLOCKS):
            return server
    raise AssertionError(f"nobody is needed: {[str(one.span) for one in swarm.servers]}")


@pytest.fixture
def equally_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal servers do not measure the same on a machine that has other things to do."""
    monkeypatch.setattr(hosted, "measure_speed", lambda blocks: Speed(0.5, 5000.0))


@pytest.mark.usefixtures("equally_fast")
def test_concurrent_sessions_spread_over_equal_replicas(folder: Path) -> None:
    """Clients of their own, one after another, none of which knows of the others."""
    with LocalSwarm(folder, "0:15", "15:30", "15:30", cache_tokens=8192) as swarm:
        models, sessions = [], []
        try:
            for number in range(10):
                # With settings of its own it is a peer of its own.
                model = swarm.client(step_timeout_s=60.0 + number)
                opened = model.__enter__()
                models.append(model)
                session = opened.session(max_length=64)
                session.__enter__()
                greedy(opened)
                sessions.append(session)
            counts = [status["sessions"] for status in swarm.statuses()]
            assert counts[0] == 10
            assert 4 <= counts[1] <= 6 and 4 <= counts[2] <= 6, counts
        finally:
            for session in sessions:
                session.__exit__(None, None, None)
            for model in models:
                model.__exit__(None, None, None)


@pytest.mark.usefixtures("equally_fast")
def test_one_clients_sessions_spread_too(folder: Path) -> None:
    counts: list[int] = []
    with LocalSwarm(folder, "0:30", "0:30", cache_tokens=8192) as swarm, swarm.client() as model:

        def count() -> None:
            counts.extend(status["sessions"] for status in swarm.statuses())

        # Counted by the last one to come, while the others wait with their sessions open.
        everyone_is_here = threading.Barrier(10, action=count)

        def chat(_: int) -> None:
            with model.session(max_length=64):
                greedy(model)
                everyone_is_here.wait(60)

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(chat, range(10)))
    assert sum(counts) == 10
    assert 4 <= counts[0] <= 6, counts


def test_a_session_goes_to_a_much_better_chain(
    folder: Path, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers that are far from each other, until one comes that needs no other."""
    monkeypatch.setattr(improving, "LOOK_S", 0.2)
    plain = PlainAutoModel.from_pretrained(folder, dtype=torch.float32)
    with LocalSwarm(folder, "0:15", "15:30") as swarm:
        first, second = swarm.servers
        swarm.set_path(first, second, delay_s=0.3)
        with swarm.client(directory_refresh_s=0.5) as model, ThreadPoolExecutor(1) as pool:
            answer = pool.submit(model.generate, IDS, max_new_tokens=80, min_new_tokens=80)
            swarm.wait_until(lambda: first.status()["sessions"] == 1)
            third = swarm.start("0:30")
            swarm.wait_until(lambda: third.status()["sessions"] == 1)
            swarm.wait_until(lambda: first.status()["sessions"] == 0)
            found = answer.result(60)
        assert torch.equal(found, plain.generate(IDS, max_new_tokens=80, min_new_tokens=80))
        swarm.wait_until_free()


def test_a_session_that_is_repaired_onto_a_server_that_leaves_goes_on(
    folder: Path, expected: torch.Tensor
) -> None:
    with LocalSwarm(folder, "0:15", "15:30", drain_timeout_s=20.0) as swarm:
        first, lost = swarm.servers
        leaving = swarm.start("15:30")
        # So slow that the generation is not through before the other has left.
        swarm.set_path(first, leaving, delay_s=0.3)
        with (
            swarm.client(link_grace_s=0.5) as model,
            generating(model, expected) as count,
        ):
            swarm.wait_until(lambda: count() >= 1 and lost.status()["sessions"] == 1)
            swarm.kill(lost)
            swarm.wait_until(lambda: leaving.status()["sessions"] == 1)
            last = swarm.start("15:30")
            swarm.stop(leaving)
            before = count()
            swarm.wait_until(lambda: count() >= before + 2)
            swarm.wait_until(lambda: last.status()["sessions"] == 1)
        swarm.wait_until_free()
