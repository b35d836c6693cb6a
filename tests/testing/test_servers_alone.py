"""A server that is a chain by itself, a whole one in memory: what it holds, and what it must not
promise. Embedding and head are the clients', so nobody reserves room for them; everything else that
it needs has room to the byte."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as PlainAutoModel

from swarm.errors import MissingBlocksError
from swarm.models.checkpoint import open_checkpoint
from swarm.server.config import PAGE_TOKENS
from swarm.server.hosting import memory_needs
from swarm.spans import Span
from swarm.testing import LocalSwarm

CACHE_TOKENS = 8 * PAGE_TOKENS
IDS = torch.arange(5, 13)[None]


def greedy(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    return found


@pytest.fixture(scope="module")
def just_enough(tiny_llama: Path) -> int:
    """Bytes of all four blocks with their caches."""
    needs = memory_needs(open_checkpoint(str(tiny_llama)), torch.float32)
    return needs.weights(Span(0, 4)) + needs.cache(Span(0, 4), CACHE_TOKENS)


def test_one_that_just_holds_the_model_serves_all_of_it(tiny_llama: Path, just_enough: int) -> None:
    expected = greedy(PlainAutoModel.from_pretrained(tiny_llama, dtype=torch.float32))
    with LocalSwarm(tiny_llama, cache_tokens=CACHE_TOKENS) as swarm:
        assert swarm.start(max_memory=just_enough).span == Span(0, 4)
        with swarm.client() as model:
            assert torch.equal(greedy(model), expected)
            assert [(hop.start, hop.end) for hop in model.route] == [(0, 4)]


def test_one_that_lacks_a_byte_leaves_a_block_to_others(tiny_llama: Path, just_enough: int) -> None:
    with LocalSwarm(tiny_llama, cache_tokens=CACHE_TOKENS) as swarm:
        assert swarm.start(max_memory=just_enough - 1).span == Span(0, 3)
        with swarm.client(missing_timeout_s=0.5) as model:
            with pytest.raises(MissingBlocksError) as missing:
                greedy(model)
            assert missing.value.blocks == ("3:4",)
            assert swarm.start(max_memory=just_enough // 4).span == Span(3, 4)
            assert greedy(model).shape == (1, IDS.shape[1] + 4)
