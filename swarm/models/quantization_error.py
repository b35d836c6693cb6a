"""How far a quantised slice is from the same blocks in float32, measured when it is loaded."""

from collections.abc import Callable

import torch

from swarm.models.checkpoint import Checkpoint
from swarm.models.packed_attention import PassRow
from swarm.models.slice import BlockSlice
from swarm.models.slice_proof import GrowingStore
from swarm.spans import Span

PROBE_TOKENS = 16


def quantization_error(
    checkpoint: Checkpoint, blocks: BlockSlice, check: Callable[[], None] = lambda: None
) -> float:
    """`|y - x| / |x|` (Euclidean, over all values) of the slice's output y and the output x of the
    stored blocks in float32, for a fixed probe of `PROBE_TOKENS` random tokens at positions from 0.

    The float32 blocks are loaded one after the other, so this takes the memory of one of them, and
    about as long as loading the slice. `check` is called before each and may raise.
    """
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(PROBE_TOKENS, blocks.hidden_size, generator=generator)
    found = _run(blocks, probe).float()
    expected = probe
    for block in range(blocks.span.start, blocks.span.end):
        check()
        one = BlockSlice.load(checkpoint, Span(block, block + 1), device=blocks.device)
        expected = _run(one, expected)
        del one
    return float((found - expected).norm() / expected.norm())


def _run(blocks: BlockSlice, hidden: torch.Tensor) -> torch.Tensor:
    """`[tokens, hidden]` as one new session."""
    places = torch.arange(len(hidden), device=blocks.device)
    rows = [PassRow(0, 0, len(hidden))]
    return blocks.forward(hidden.to(blocks.device, blocks.dtype), places, rows, GrowingStore())
