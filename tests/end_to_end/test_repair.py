"""A generation goes on with exactly the ids of an undisturbed one when its servers are lost."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from generations import AtTokens, plain_ids
from tiny_pairs import some_ids

from swarm.errors import MissingBlocksError
from swarm.server.server import Server
from swarm.testing import LocalSwarm

TOKENS = 24
SPANS = ("0:1", "1:3", "3:4")


@pytest.fixture
def swarm(tiny_llama: Path) -> Iterator[LocalSwarm]:
    with LocalSwarm(tiny_llama, *SPANS, *SPANS, drain_timeout_s=60) as swarm:
        yield swarm
        swarm.wait_until_free()


def hop(swarm: LocalSwarm, model: Any, index: int) -> Server:
    """The server of a hop of the session that computes, or computed last."""
    peer = model.route[index].peer
    return next(server for server in swarm.servers if server.peer_id == peer)


def generate(model: Any, ids: torch.Tensor, *events: tuple[int, Callable[[], None]]) -> Any:
    """Greedy ids; each event is called once so many tokens are there."""
    calls = AtTokens(ids.shape[1], dict(events))
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
        stopping_criteria=[calls],
    )


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_killed_hop_is_replaced(swarm: LocalSwarm, tiny_llama: Path, index: int) -> None:
    ids = some_ids(9)
    with swarm.client() as model:
        route: list[Any] = []

        def kill() -> None:
            route.extend(model.route)
            swarm.kill(hop(swarm, model, index))

        found = generate(model, ids, (10, kill))
        assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))
        changed = [old != new for old, new in zip(route, model.route, strict=True)]
        assert changed == [number == index for number in range(3)]


def test_without_a_replica_the_missing_blocks_are_named_in_time(tiny_llama: Path) -> None:
    with LocalSwarm(tiny_llama, *SPANS) as swarm, swarm.client(repair_timeout_s=1.0) as model:
        with pytest.raises(MissingBlocksError) as missing:
            generate(model, some_ids(9), (5, lambda: swarm.kill(hop(swarm, model, 1))))
        assert missing.value.blocks == ("1:3",)
        swarm.wait_until_free()


def test_a_leaving_server_hands_its_sessions_over(swarm: LocalSwarm, tiny_llama: Path) -> None:
    """Eight sessions; none fails, and none computes a token twice for its user."""
    prompts = [some_ids(9 + number, seed=number) for number in range(8)]
    found: dict[int, torch.Tensor] = {}
    all_run = threading.Barrier(9)

    def work(number: int) -> None:
        found[number] = generate(model, prompts[number], (5, all_run.wait))

    with swarm.client() as model:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        all_run.wait(60)
        leaving = swarm.servers[1]
        swarm.stop(leaving)
        for thread in threads:
            thread.join(60)
        assert leaving.peer_id not in {hop.peer for hop in model.route}
    for number, ids in enumerate(prompts):
        assert torch.equal(found[number], plain_ids(tiny_llama, ids, TOKENS))


def test_a_backup_that_was_given_up_is_replaced_by_the_clients_inputs(tiny_llama: Path) -> None:
    """What is evicted is counted; a hop behind is refilled from farther back."""
    ids = some_ids(9)
    with (
        LocalSwarm(tiny_llama, *SPANS, *SPANS, backup_memory=0) as swarm,
        swarm.client() as model,
    ):
        found = generate(model, ids, (10, lambda: swarm.kill(hop(swarm, model, 2))))
        assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))
        assert {status["backup_bytes"] for status in swarm.statuses()} == {0}


def test_a_frozen_or_cut_off_hop_is_replaced(swarm: LocalSwarm, tiny_llama: Path) -> None:
    """Nothing comes from it any more, and nothing says so."""
    ids = some_ids(9)
    with swarm.client() as model:
        frozen: list[Server] = []

        def freeze() -> None:
            frozen.append(hop(swarm, model, 1))
            swarm.partition(frozen[0])

        found = generate(model, ids, (12, freeze))
        assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))
        assert frozen[0].peer_id not in {one.peer for one in model.route}
        swarm.heal(frozen[0])


def test_a_session_moves_away_from_a_link_that_is_only_late(
    swarm: LocalSwarm, tiny_llama: Path
) -> None:
    """The link lives, and is not torn down; the server behind it is not left out later."""
    ids = some_ids(9)
    with swarm.client() as model:
        route: list[Any] = []

        def delay() -> None:
            route.extend(model.route)
            swarm.set_path(hop(swarm, model, 0), hop(swarm, model, 1), delay_s=30.0)

        found = generate(model, ids, (12, delay))
        assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))
        assert model.route != tuple(route)
