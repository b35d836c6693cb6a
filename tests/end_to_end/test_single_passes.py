"""Models that run one session a pass, or rewind by snapshots, generate what transformers does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import Pair, draw, greedy, plain_model, some_ids
from transformers import set_seed

from swarm.models.building import building_model
from swarm.testing import LocalSwarm

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bloom": {},
    "falcon": {},
    "mpt": {},
    "llama4_text": {"max_position_embeddings": 192},
    "phi3": {},  # its prompts below are longer than its original context of 32
    "falcon_h1": {"max_position_embeddings": 192},
    "qwen3_next": {"max_position_embeddings": 192},
}
RECURRENT = {"falcon_h1", "qwen3_next"}
SPANS = ("0:2", "1:5")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    model = draw(request.param, **ARCHITECTURES[request.param])
    with building_model():
        model.save_pretrained(folder)
    # Recurrent state takes as much room as hundreds of tokens, in each row.
    room = {"cache_tokens": 16384}
    with (
        LocalSwarm(folder, *SPANS, **room) as swarm,
        swarm.client(prefill_chunk_tokens=7) as remote,
    ):
        yield Pair(plain_model(folder), remote, swarm, folder)


@pytest.mark.parametrize("length", [1, 9, 40])
def test_greedy(pair: Pair, length: int) -> None:
    ids = some_ids(length)
    assert torch.equal(greedy(pair.remote, ids, 20), greedy(pair.plain, ids, 20))


@pytest.mark.parametrize(
    "options", [{"do_sample": True}, {"num_beams": 4}], ids=["sampled", "beams"]
)
def test_a_left_padded_batch(pair: Pair, options: dict[str, Any]) -> None:
    ids, mask = some_ids(11, rows=3), torch.ones(3, 11, dtype=torch.long)
    for row, padding in enumerate([0, 4, 9]):
        ids[row, :padding] = 0
        mask[row, :padding] = 0
    found = []
    for model in (pair.plain, pair.remote):
        set_seed(3)
        found.append(model.generate(ids, attention_mask=mask, max_new_tokens=10, **options))
    assert torch.equal(*found)


def test_rejected_guesses_are_rolled_back(pair: Pair) -> None:
    """transformers itself has no assisted generation for recurrent models; the swarm has."""
    ids = some_ids(6).repeat(1, 4)
    options = {"attention_mask": torch.ones_like(ids), "use_cache": True}
    options |= {"max_new_tokens": 40, "min_new_tokens": 40}
    guesses = {"prompt_lookup_num_tokens": 4}
    if pair.folder.name in RECURRENT:
        expected = greedy(pair.plain, ids, 40)
    else:
        expected = pair.plain.generate(ids, do_sample=False, **options, **guesses)
    found = pair.remote.generate(ids, do_sample=False, **options, **guesses)
    assert torch.equal(found, expected)


def test_an_edited_conversation(pair: Pair) -> None:
    """Rewinds of many tokens, also to below every snapshot."""
    told = some_ids(45)
    with pair.remote.session(max_length=80) as session:
        for kept, seed in ((45, 1), (38, 2), (3, 3), (60, 4)):
            ids = torch.cat([told[:, :kept], some_ids(5, seed=seed)], dim=1)
            route = session.route
            told = greedy(pair.remote, ids, 12)
            assert torch.equal(told, greedy(pair.plain, ids, 12))
            assert session.route == route or not route


def test_recurrent_state_is_paid_for_and_given_back(pair: Pair) -> None:
    pair.swarm.wait_until_free()
    with pair.remote.session(max_length=30):
        greedy(pair.remote, some_ids(5), 2)
        taken = [
            status["cache_tokens_total"] - status["cache_tokens_free"]
            for status in pair.swarm.statuses()
        ]
    assert all((tokens > 64) == (pair.folder.name in RECURRENT) for tokens in taken), taken
    pair.swarm.wait_until_free()
