"""How much a machine can host: blocks and cached tokens against the memory that it may use."""

from dataclasses import dataclass

from swarm.errors import MemoryShortError
from swarm.server.config import PAGE_TOKENS
from swarm.server.free_memory import FreeMemory
from swarm.server.sizes import in_words
from swarm.spans import Span

RESERVE_BYTES = 256 << 20
"""Left alone: activations of a pass, message buffers, the interpreter."""
CACHE_SHARE = 0.25
"""Part of the memory left beside the weights that the cache takes by default."""
LENT_CACHE_SHARE = 0.5
"""The same when its owner has said how much is lent: then all that is left of that, but no more
than this part of what is free."""
MAX_DEFAULT_CACHE_TOKENS = 65536
MIN_CACHE_TOKENS = 256


@dataclass(frozen=True)
class Budget:
    """What blocks and cache may take."""

    free: FreeMemory
    lent_bytes: int | None = None
    """`--max-memory`: for blocks and cache together; None: its owner has not said."""

    @property
    def usable_bytes(self) -> int:
        """For blocks and cache together."""
        usable = max(0, self.free.size_bytes - RESERVE_BYTES)
        return usable if self.lent_bytes is None else min(usable, self.lent_bytes)

    @property
    def in_words(self) -> str:
        """`the 8.0 GB that are free on this machine`, or `the 4.0 GB of --max-memory`."""
        if self.lent_bytes is not None and self.lent_bytes == self.usable_bytes:
            return f"the {in_words(self.lent_bytes)} of --max-memory"
        return f"the {in_words(self.free.size_bytes)} that are free {self.free.where}"

    def without(self, taken_bytes: int) -> "Budget":
        """What is left of it when so much has been taken, or will be."""
        free = FreeMemory(max(0, self.free.size_bytes - taken_bytes), self.free.where)
        lent = None if self.lent_bytes is None else max(0, self.lent_bytes - taken_bytes)
        return Budget(free, lent)


@dataclass(frozen=True)
class MemoryNeeds:
    """What hosting costs, in bytes."""

    block_bytes: tuple[int, ...]
    """Weights of each block of the model in the dtype that is hosted."""
    token_bytes_per_block: float
    """K/V of one token in one block."""
    loading_bytes: int = 0
    """What loading takes beside the weights, before there is a cache: quantized blocks are
    compared with one in float32 at a time."""

    def weights(self, span: Span) -> int:
        return sum(self.block_bytes[span.start : span.end])

    def cache(self, span: Span, tokens: int) -> int:
        return int(tokens * self.token_bytes_per_block * len(span))

    def blocks_that_fit(self, usable_bytes: int, cache_tokens: int | None) -> int:
        """How many blocks of the largest size fit beside their cache; may be 0."""
        tokens = MIN_CACHE_TOKENS if cache_tokens is None else cache_tokens
        share = 1.0 if cache_tokens is not None else 1.0 - CACHE_SHARE
        each = max(self.block_bytes) / share + tokens * self.token_bytes_per_block
        count = usable_bytes // each
        if self.loading_bytes:
            room = max(0, usable_bytes - self.loading_bytes)
            count = min(count, room // max(self.block_bytes))
        return min(len(self.block_bytes), int(count))

    def check(self, span: Span, budget: Budget, cache_tokens: int | None) -> None:
        """Raises `MemoryShortError` that says what would fit instead."""
        tokens = MIN_CACHE_TOKENS if cache_tokens is None else cache_tokens
        weights, cache, usable = self.weights(span), self.cache(span, tokens), budget.usable_bytes
        if weights + max(cache, self.loading_bytes) <= usable:
            return
        count = self.blocks_that_fit(usable, cache_tokens)
        advice = "use a machine with more memory"
        if cache_tokens is not None and usable - weights >= self.cache(span, MIN_CACHE_TOKENS):
            fitting = int((usable - weights) / (self.token_bytes_per_block * len(span)))
            fitting -= fitting % PAGE_TOKENS
            advice = f"use --cache-tokens {fitting} or fewer"
        elif count:
            end = min(span.end, span.start + count)
            advice = f"use --blocks {span.start}:{end} or fewer"
        elif budget.lent_bytes == usable:
            advice = "lend more"
        raise MemoryShortError(
            f"blocks {span} need {in_words(weights)}, {tokens} cached tokens {in_words(cache)}"
            f"{self._loading_in_words(cache)} and the program {in_words(RESERVE_BYTES)}, more than"
            f" {budget.in_words}; {advice}"
        )

    def _loading_in_words(self, cache: int) -> str:
        if self.loading_bytes <= cache:
            return ""
        return f" (before that, measuring the quantization {in_words(self.loading_bytes)})"

    def default_cache_tokens(self, span: Span, left: Budget) -> int:
        """A share of what is left beside the weights: at most 65,536 tokens, a multiple of 256."""
        free = max(0, left.free.size_bytes - RESERVE_BYTES)
        room = free * CACHE_SHARE
        if left.lent_bytes is not None:
            room = min(left.lent_bytes, free * LENT_CACHE_SHARE)
        tokens = int(room / (self.token_bytes_per_block * len(span))) // 256 * 256
        return max(MIN_CACHE_TOKENS, min(MAX_DEFAULT_CACHE_TOKENS, tokens))


def cache_tokens(
    asked: int | None, needs: MemoryNeeds, span: Span, left: Budget
) -> tuple[int, str]:
    """The size of the cache of `span` and why, with `left` beside the weights. Raises
    `MemoryShortError`."""
    if asked is None:
        tokens = needs.default_cache_tokens(span, left)
        whose = "what --max-memory leaves" if left.lent_bytes is not None else "the free memory"
        return tokens, f"{in_words(needs.cache(span, tokens))} of {whose}"
    tokens = -(-asked // PAGE_TOKENS) * PAGE_TOKENS
    if tokens == asked:
        return tokens, "as asked"
    return tokens, f"{asked:,} asked, in whole pages of {PAGE_TOKENS}"
