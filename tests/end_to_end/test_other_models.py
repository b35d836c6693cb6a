"""Every way of generating is exact for other models too, over odd and overlapping cuts."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_pairs import (
    LOGITS_TOLERANCE,
    Pair,
    greedy,
    plain_model,
    save_tiny,
    some_ids,
)
from transformers import set_seed

from swarm.errors import SessionFullError
from swarm.testing import LocalSwarm

SWARMS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "llama": ("llama", {}, ("0:1", "1:4")),
    "llama-sharded": ("llama", {"max_shard_size": "50KB"}, ("0:2", "1:3", "3:4")),
    "qwen2": ("qwen2", {}, ("0:3", "1:4")),
    "qwen3": ("qwen3", {}, ("0:1", "1:3", "2:4")),
    "gpt2": ("gpt2", {}, ("0:3", "3:4")),
}
"""Architecture, how it is saved, and the spans of its servers."""


@pytest.fixture(scope="module", params=SWARMS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    architecture, save, spans = SWARMS[request.param]
    folder = tmp_path_factory.mktemp("models") / request.param
    save_tiny(architecture, folder, **save)
    with LocalSwarm(folder, *spans) as swarm, swarm.client() as remote:
        yield Pair(plain_model(folder), remote, swarm, folder)


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "assistant", seed=5)


def same(pair: Pair, ids: torch.Tensor, **options: Any) -> None:
    """Both generate the same ids from the same seed."""
    options.setdefault("attention_mask", torch.ones_like(ids))
    set_seed(3)
    expected = pair.plain.generate(ids, **options)
    set_seed(3)
    assert torch.equal(pair.remote.generate(ids, **options), expected)


def test_it_is_the_checkpoints_own_class(pair: Pair) -> None:
    assert isinstance(pair.remote, type(pair.plain))
    assert type(pair.remote).__name__ == type(pair.plain).__name__
    shards = list(pair.folder.glob("*.safetensors"))
    assert (len(shards) > 1) == pair.folder.name.endswith("sharded")


def test_the_route_covers_the_model(pair: Pair) -> None:
    greedy(pair.remote, some_ids(5), 2)
    hops = [(hop.start, hop.end) for hop in pair.remote.route]
    assert hops[0][0] == 0 and hops[-1][1] == 4
    assert all(before[1] == after[0] for before, after in itertools.pairwise(hops))
    assert len(hops) == len(pair.swarm.servers)


@pytest.mark.parametrize("length", [1, 7, 33])
def test_greedy(pair: Pair, length: int) -> None:
    ids = some_ids(length)
    assert torch.equal(greedy(pair.remote, ids, 32), greedy(pair.plain, ids, 32))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "max_new_tokens": 24},
        {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 12},
        {"num_beams": 5, "max_new_tokens": 16, "do_sample": False},
        {"num_beams": 5, "num_return_sequences": 2, "max_new_tokens": 10, "do_sample": False},
        {"prompt_lookup_num_tokens": 3, "max_new_tokens": 24, "do_sample": False},
    ],
    ids=["sampling", "three-samples", "beams", "best-of-beams", "lookup"],
)
def test_ways_of_generating(pair: Pair, options: dict[str, Any]) -> None:
    same(pair, some_ids(4).repeat(1, 3), **options)


def test_a_local_assistant(pair: Pair, assistant: Any) -> None:
    same(pair, some_ids(9), max_new_tokens=20, do_sample=False, assistant_model=assistant)


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True}, {"num_beams": 5}])
def test_a_left_padded_batch(pair: Pair, options: dict[str, Any]) -> None:
    ids, mask = some_ids(11, rows=3), torch.ones(3, 11, dtype=torch.long)
    for row, padding in enumerate([0, 4, 9]):
        ids[row, :padding] = 0
        mask[row, :padding] = 0
    same(pair, ids, attention_mask=mask, max_new_tokens=12, **options)


def test_two_calls_in_one_session(pair: Pair) -> None:
    first = some_ids(6)
    with pair.remote.session(max_length=40) as session:
        told = greedy(pair.remote, first, 8)
        assert torch.equal(told, greedy(pair.plain, first, 8))
        assert session.position == told.shape[1] - 1
        more = torch.cat([told, some_ids(3, seed=1)], dim=1)
        route = session.route
        again = greedy(pair.remote, more, 8)
        assert torch.equal(again, greedy(pair.plain, more, 8))
        assert session.route == route
        changed = torch.cat([first, some_ids(4, seed=2)], dim=1)
        assert torch.equal(greedy(pair.remote, changed, 8), greedy(pair.plain, changed, 8))
        with pytest.raises(SessionFullError, match="max_length"):
            greedy(pair.remote, more, 40)


@pytest.mark.parametrize("sizes", [[41], [13, 1, 20, 7], [1] * 41], ids=["one", "odd", "single"])
def test_logits(pair: Pair, sizes: list[int]) -> None:
    ids = some_ids(41)
    found, cache = [], None
    with torch.no_grad():
        expected = pair.plain(ids).logits
        for part in ids.split(sizes, dim=1):
            output = pair.remote(part, past_key_values=cache)
            cache = output.past_key_values
            found.append(output.logits)
    assert (torch.cat(found, dim=1) - expected).abs().max() < LOGITS_TOLERANCE


def test_nothing_is_left_on_the_servers(pair: Pair) -> None:
    pair.swarm.wait_until_free()
