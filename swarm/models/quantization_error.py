"""How far quantized blocks are from the same blocks in float32, measured when they are loaded."""

import statistics
from collections.abc import Callable

import torch

from swarm.models.checkpoint import Checkpoint
from swarm.models.packed_attention import PassRow
from swarm.models.slice import BlockSlice
from swarm.models.slice_proof import GrowingStore
from swarm.models.weights_memory import give_back_freed, weights_apart
from swarm.spans import Span

PROBE_TOKENS = 16


def quantization_error(
    checkpoint: Checkpoint,
    blocks: BlockSlice,
    check: Callable[[], None] = lambda: None,
    probe: torch.Tensor | None = None,
) -> float:
    """The median over the blocks of `|y - x| / |x - h|` (Euclidean, over all values): what a block
    of the slice puts out is y; the stored block in float32, given the same h, puts out x.

    So it is the error of one block, as a share of what that block adds, and neither the number of
    blocks nor the size of the residual stream matters. Each h is what the float32 block before has
    put out, in the slice's dtype. The first one is `probe`, `[tokens, hidden_size]`: a session's
    activations, or by default `PROBE_TOKENS` random tokens. In float32, SmolLM2's figure is the
    same for these as for a text; in bfloat16 theirs is up to twice as large, because rounding the
    sum of what all blocks have added counts too.

    The float32 blocks are loaded one after the other, so this takes the memory of one of them, and
    about as long as loading the slice. `check` is called before each and may raise.
    """
    if probe is None:
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(PROBE_TOKENS, blocks.hidden_size, generator=generator)
    hidden = probe.to(blocks.device, blocks.dtype).float()
    places = torch.arange(len(hidden), device=blocks.device)
    shares = []
    for block in range(blocks.span.start, blocks.span.end):
        check()
        span = Span(block, block + 1)
        with weights_apart():
            stored = BlockSlice.load(checkpoint, span, device=blocks.device, prepare=False)
            expected = stored.reference(hidden, places)
            del stored
            session = [PassRow(0, 0, len(hidden))]
            passed = blocks.part(span)
            found = passed.forward(hidden.to(blocks.dtype), places, session, GrowingStore())
        give_back_freed()
        shares.append(float((found.float() - expected).norm() / (expected - hidden).norm()))
        hidden = expected.to(blocks.dtype).float()
    return statistics.median(shares)
