"""How much a machine can host: blocks and cached tokens against the memory that is free."""

from dataclasses import dataclass
from pathlib import Path

import psutil

from swarm.errors import MemoryShortError
from swarm.server.config import PAGE_TOKENS
from swarm.spans import Span

RESERVE_BYTES = 256 << 20
"""Left alone: activations of a pass, message buffers, the interpreter."""
CACHE_SHARE = 0.25
"""Part of the memory left beside the weights that the cache takes by default."""
MOST_DEFAULT_CACHE_TOKENS = 65536
LEAST_CACHE_TOKENS = 256
_CGROUP = Path("/sys/fs/cgroup")


def free_memory_bytes(device: str) -> int:
    """Bytes that can still be taken on `device`: a GPU's own, else the machine's or container's."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(torch.device(device))
        return int(free)
    return min(int(psutil.virtual_memory().available), _container_bytes())


def _container_bytes() -> int:
    """What a cgroup still allows; page cache is given back on demand, so it counts as free."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        statistics = dict(
            line.split(" ", 1) for line in (_CGROUP / "memory.stat").read_text().splitlines()
        )
    except (OSError, ValueError):
        return 1 << 62
    if limit == "max":
        return 1 << 62
    return max(0, int(limit) - used + int(statistics.get("inactive_file", 0)))


def in_words(count: float) -> str:
    """Bytes as people write them: `1.5 GB`."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB"


@dataclass(frozen=True)
class MemoryNeeds:
    """What hosting costs, in bytes."""

    block_bytes: tuple[int, ...]
    """Weights of each block of the model in the dtype that is hosted."""
    token_bytes_per_block: float
    """K/V of one token in one block."""

    def weights(self, span: Span) -> int:
        return sum(self.block_bytes[span.start : span.end])

    def cache(self, span: Span, tokens: int) -> int:
        return int(tokens * self.token_bytes_per_block * len(span))

    def blocks_that_fit(self, free_bytes: int, cache_tokens: int | None) -> int:
        """How many blocks of the largest size fit beside their cache; may be 0."""
        tokens = LEAST_CACHE_TOKENS if cache_tokens is None else cache_tokens
        share = 1.0 if cache_tokens is not None else 1.0 - CACHE_SHARE
        each = max(self.block_bytes) / share + tokens * self.token_bytes_per_block
        return min(len(self.block_bytes), int(max(0, free_bytes - RESERVE_BYTES) // each))

    def check(self, span: Span, free_bytes: int, cache_tokens: int | None) -> None:
        """Raises `MemoryShortError` that says what would fit instead."""
        tokens = LEAST_CACHE_TOKENS if cache_tokens is None else cache_tokens
        weights, cache = self.weights(span), self.cache(span, tokens)
        if weights + cache + RESERVE_BYTES <= free_bytes:
            return
        count = self.blocks_that_fit(free_bytes, cache_tokens)
        room = free_bytes - weights - RESERVE_BYTES
        advice = "use a machine with more memory"
        if cache_tokens is not None and room >= self.cache(span, LEAST_CACHE_TOKENS):
            fitting = int(room / (self.token_bytes_per_block * len(span)))
            fitting -= fitting % PAGE_TOKENS
            advice = f"use --cache-tokens {fitting} or fewer"
        elif count:
            end = min(span.end, span.start + count)
            advice = f"use --blocks {span.start}:{end} or fewer"
        raise MemoryShortError(
            f"blocks {span} need {in_words(weights)}, {tokens} cached tokens {in_words(cache)} and"
            f" the program {in_words(RESERVE_BYTES)}, but only {in_words(free_bytes)} are free;"
            f" {advice}"
        )

    def default_cache_tokens(self, span: Span, free_after_weights: int) -> int:
        """A share of what is free, at most 65,536 tokens, a multiple of 256."""
        room = int(max(0, free_after_weights - RESERVE_BYTES) * CACHE_SHARE)
        tokens = int(room / (self.token_bytes_per_block * len(span))) // 256 * 256
        return max(LEAST_CACHE_TOKENS, min(MOST_DEFAULT_CACHE_TOKENS, tokens))
