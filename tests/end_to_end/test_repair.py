"""A generation goes on with exactly the ids of an undisturbed one when its servers are lost."""

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
    with LocalSwarm(tiny_llama, *SPANS, *SPANS) as swarm:
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
