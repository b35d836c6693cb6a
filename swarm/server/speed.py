"""How fast a slice computes here, measured when it is loaded: a first guess for announcements."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig

from swarm.models.packed_attention import PassRow
from swarm.models.slice import BlockSlice
from swarm.scheduling.cost_model import PROMPT_TOKENS
from swarm.server.kv_cache import PagedCache
from swarm.spans import SessionId

if TYPE_CHECKING:
    from swarm.server.hosted import Plan

GUESSED_BYTES = 64 << 20
_GUESSED_WIDTH = 4096
MAX_S = 1.0
"""No further round begins after this time."""
_ROUNDS = 5
_SESSION = SessionId(bytes(16))


@dataclass(frozen=True)
class Speed:
    """Best of a few passes of one session over all blocks of the slice."""

    decode_ms_per_block: float
    """One token behind a context of 128, or of all that the model has, divided by the number of
    blocks."""
    prefill_tokens_per_s: float
    """Prompt tokens through the whole slice, without a context."""


def measure_speed(blocks: BlockSlice) -> Speed:
    """Takes about a second, or one pass of each kind where that is more, and the memory of one
    layer's K/V of a session.

    The thread's own torch settings decide how many cores take part.
    """
    tokens = min(PROMPT_TOKENS, max(1, _most_positions(blocks.model.config) - _ROUNDS))
    slots = tokens + _ROUNDS
    kinds = list(dict.fromkeys(blocks.kv_shapes))
    cache = PagedCache(kinds, slots, page_tokens=slots, dtype=blocks.dtype, device=blocks.device)
    # Layers of one shape take turns: what they read does not matter here, and room for all of them
    # might not be there.
    cache.keys = [cache.keys[kinds.index(shape)] for shape in blocks.kv_shapes]
    cache.values = [cache.values[kinds.index(shape)] for shape in blocks.kv_shapes]
    cache.reserve(_SESSION, 1, slots)
    row = cache.row(_SESSION, 0)
    prompt = torch.zeros(tokens, blocks.hidden_size, dtype=blocks.dtype)
    prompt = prompt.normal_(generator=torch.Generator().manual_seed(0)).to(blocks.device)

    def run(start: int, count: int) -> float:
        began = time.perf_counter()
        positions = torch.arange(start, start + count, device=blocks.device)
        answer = blocks.forward(prompt[:count], positions, [PassRow(row, start, count)], cache)
        answer[-1, 0].item()  # waits for an accelerator
        return time.perf_counter() - began

    with torch.inference_mode():
        deadline = time.perf_counter() + MAX_S
        prompts = [run(0, tokens)]
        steps = [run(tokens, 1)]
        while len(steps) < _ROUNDS and time.perf_counter() < deadline:
            steps.append(run(tokens + len(steps), 1))
        if time.perf_counter() + prompts[0] < deadline:
            prompts.append(run(0, tokens))
    return Speed(1e3 * min(steps) / len(blocks.span), tokens / min(prompts))


def _most_positions(config: PretrainedConfig) -> int:
    """Beyond which some models have no tables."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    told = [getattr(config, name, None) for name in names]
    return min((each for each in told if isinstance(each, int)), default=PROMPT_TOKENS + _ROUNDS)


def guess_decode_ms(plan: "Plan", threads: int) -> float:
    """A token in one block, before anything is loaded: its weights have to be read once.

    Read is a matrix of at most `GUESSED_BYTES`, in the dtype that will be hosted.
    """
    torch.set_num_threads(threads)
    block_bytes = max(plan.needs.block_bytes)
    rows = min(block_bytes, GUESSED_BYTES) // (_GUESSED_WIDTH * plan.dtype.itemsize)
    weights = torch.ones(max(1, rows), _GUESSED_WIDTH, dtype=plan.dtype, device=plan.device)
    token = torch.ones(_GUESSED_WIDTH, dtype=plan.dtype, device=plan.device)
    least_s = float("inf")
    with torch.inference_mode():
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            (weights @ token)[-1].item()  # waits for an accelerator
            least_s = min(least_s, time.perf_counter() - began)
    return 1e3 * least_s * block_bytes / weights.nbytes
