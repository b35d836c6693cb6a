"""How fast a slice computes here, measured when it is loaded: a first guess for announcements."""

import time
from dataclasses import dataclass

import torch

from swarm.models.packed_attention import PassRow
from swarm.models.slice import BlockSlice
from swarm.scheduling.cost_model import PROMPT_TOKENS
from swarm.server.kv_cache import PagedCache
from swarm.spans import SessionId

LONGEST_S = 1.0
"""No further round begins after this time."""
_ROUNDS = 5
_SESSION = SessionId(bytes(16))


@dataclass(frozen=True)
class Speed:
    """Best of a few passes of one session over all blocks of the slice."""

    decode_ms_per_block: float
    """One token behind a context of 128, divided by the number of blocks."""
    prefill_tokens_per_s: float
    """Prompt tokens through the whole slice, without a context."""


def measure_speed(blocks: BlockSlice) -> Speed:
    """Takes about a second, or one pass of each kind where that is more; memory for one session.

    The thread's own torch settings decide how many cores take part.
    """
    slots = PROMPT_TOKENS + _ROUNDS
    cache = PagedCache(
        blocks.kv_shapes, slots, page_tokens=slots, dtype=blocks.dtype, device=blocks.device
    )
    cache.reserve(_SESSION, 1, slots)
    row = cache.row(_SESSION, 0)
    prompt = torch.zeros(PROMPT_TOKENS, blocks.hidden_size, dtype=blocks.dtype)
    prompt = prompt.normal_(generator=torch.Generator().manual_seed(0)).to(blocks.device)

    def run(start: int, count: int) -> float:
        began = time.perf_counter()
        positions = torch.arange(start, start + count, device=blocks.device)
        answer = blocks.forward(prompt[:count], positions, [PassRow(row, start, count)], cache)
        answer[-1, 0].item()  # waits for an accelerator
        return time.perf_counter() - began

    with torch.inference_mode():
        deadline = time.perf_counter() + LONGEST_S
        prompts = [run(0, PROMPT_TOKENS)]
        steps = [run(PROMPT_TOKENS, 1)]
        while len(steps) < _ROUNDS and time.perf_counter() < deadline:
            steps.append(run(PROMPT_TOKENS + len(steps), 1))
        if time.perf_counter() + prompts[0] < deadline:
            prompts.append(run(0, PROMPT_TOKENS))
    return Speed(1e3 * min(steps) / len(blocks.span), PROMPT_TOKENS / min(prompts))
