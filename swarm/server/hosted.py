"""The part of a model that this server has loaded: slice, cache and measured speed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.quantization import Quantization
from swarm.models.quantization_error import quantization_error
from swarm.models.slice import BlockSlice
from swarm.routing.view import Numerics
from swarm.server.config import ServerConfig
from swarm.server.free_memory import free_memory
from swarm.server.hosting import memory_needs, pick_device, pick_dtype
from swarm.server.huge_pages import MIN_BYTES, use_huge_pages
from swarm.server.kv_cache import PagedCache
from swarm.server.memory import Budget, MemoryNeeds, cache_tokens
from swarm.server.speed import Speed, measure_speed
from swarm.spans import Span

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What to load, decided before anything is read."""

    checkpoint: Checkpoint
    identity: str
    """Of the checkpoint: its weights and config, wherever they lie."""
    device: torch.device
    dtype: torch.dtype
    needs: MemoryNeeds
    quantization: Quantization = "none"

    @property
    def numerics(self) -> Numerics:
        dtype = str(self.dtype).removeprefix("torch.")
        return Numerics(dtype, self.quantization, kernel_class=self.device.type)


@dataclass(frozen=True)
class Hosted:
    """A loaded span, ready for an engine."""

    blocks: BlockSlice
    cache: PagedCache
    cache_reason: str
    """How the size of the cache was decided, in words."""
    speed: Speed
    block_digests: bytes
    """Of the stored blocks, one after the other, as they are announced."""
    quantization_error: float | None = None
    """Of a block, as a share of what it adds in float32; see `swarm.models.quantization_error`."""


def make_plan(config: ServerConfig) -> Plan:
    """Opens the checkpoint (headers only) and decides how it would be hosted. Takes seconds."""
    checkpoint = open_checkpoint(config.model, config.revision)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device, checkpoint)
    needs = memory_needs(checkpoint, dtype, config.quantization)
    return Plan(checkpoint, checkpoint.identity, device, dtype, needs, config.quantization)


def load(
    plan: Plan,
    span: Span,
    config: ServerConfig,
    threads: int,
    fetching: Callable[[int, int], None],
    progress: Callable[[int, int], None],
    check: Callable[[], None],
) -> Hosted:
    """Reads the blocks, makes the cache and measures; takes seconds to minutes, so in a thread.

    `fetching(bytes, bytes in all)` is called if the model is on the hub and not here;
    `progress(tensors read, tensors in all)`; `check` raises when nobody waits any more. Raises
    `CheckpointError`, `ModelNotFoundError` (a hub that breaks off), `NotServedError`,
    `MemoryShortError`.
    """
    torch.set_num_threads(threads)
    plan.checkpoint.fetch(plan.checkpoint.block_tensors(span).values(), fetching)
    blocks = BlockSlice.load(
        plan.checkpoint,
        span,
        dtype=plan.dtype,
        device=plan.device,
        progress=progress,
        quantization=plan.quantization,
    )
    check()
    error = None
    if plan.quantization != "none":
        error = quantization_error(plan.checkpoint, blocks, check)
    if plan.device.type == "cpu" and plan.needs.weights(span) >= MIN_BYTES:
        logger.info("%d MB of memory are on huge pages now", use_huge_pages() // 1_000_000)
    tokens, reason = _cache_tokens(plan, span, config, blocks.bytes_per_token)
    cache = PagedCache(
        blocks.kv_shapes,
        tokens,
        row_bytes=blocks.row_bytes,
        dtype=plan.dtype,
        device=plan.device,
    )
    speed = measure_speed(blocks)
    digests = _digests(plan.checkpoint, span, check)
    return Hosted(blocks, cache, reason, speed, digests, error)


def _digests(checkpoint: Checkpoint, span: Span, check: Callable[[], None]) -> bytes:
    """Reads the blocks once more the first time; then they are known on this machine."""
    digests = b""
    for block in range(span.start, span.end):
        check()
        digests += checkpoint.block_digest(block)
    return digests


def _cache_tokens(
    plan: Plan, span: Span, config: ServerConfig, bytes_per_token: int
) -> tuple[int, str]:
    """The size of the cache, and why; the slice has told what a token really takes."""
    lent = config.max_memory
    if lent is not None:
        lent = max(0, lent - plan.needs.weights(span))
    left = Budget(free_memory(str(plan.device)), lent)
    needs = MemoryNeeds(tuple(0 for _ in plan.needs.block_bytes), bytes_per_token / len(span))
    tokens, reason = cache_tokens(config.cache_tokens, needs, span, left)
    if config.cache_tokens is not None:
        needs.check(span, left, tokens)
    return tokens, reason
