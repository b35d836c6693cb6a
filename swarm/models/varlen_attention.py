"""Attention of all rows of a packed pass in one kernel: torch's FlashAttention for ragged batches.

It runs on CUDA, in bfloat16 and float16, for layers without soft caps, sinks and chunks; all others
attend row by row. A kernel is used only where it has once computed what attention by rows computes.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

logger = logging.getLogger("swarm.models.slice")

_DTYPES = (torch.bfloat16, torch.float16)
_MAX_DIM = 256
_TRIAL = ((3, 7), (1, 5), (4, 4))
"""New tokens and slots of the rows on which a kernel is tried."""

Kernel = Callable[..., Any]
"""As `torch.nn.attention.varlen.varlen_attn`."""


def fits(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether there is a kernel for `[1, heads, tokens, dim]` tensors like these, and it works."""
    dim = query.shape[-1]
    if query.device.type != "cuda" or query.dtype not in _DTYPES:
        return False
    if dim != value.shape[-1] or dim % 8 or dim > _MAX_DIM:
        return False
    return _works(query.device, query.dtype, query.shape[1], value.shape[1], dim)


def attend_ragged(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    counts: Sequence[int],
    window: int | None,
    scaling: float | None,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """`query` is `[tokens, heads, dim]`: `counts[r]` new tokens of row r, the last of its slots.

    `keys[r]` and `values[r]` are `[kv_heads, slots, dim]`. A token sees the `window` slots up to
    its own (None: all). The answer is like `query`. `kernel`: another than torch's.
    """
    lengths = [key.shape[1] for key in keys]
    edges = partial(torch.tensor, dtype=torch.int32, device=query.device)
    answer: torch.Tensor = (kernel or _torchs_kernel())(
        query,
        torch.cat(list(keys), 1).transpose(0, 1).contiguous(),
        torch.cat(list(values), 1).transpose(0, 1).contiguous(),
        edges(_running_sum(counts)),
        edges(_running_sum(lengths)),
        max(counts),
        max(lengths),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != keys[0].shape[0],
    )
    return answer


def _torchs_kernel() -> Kernel:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _running_sum(counts: Sequence[int]) -> list[int]:
    sums = [0]
    for count in counts:
        sums.append(sums[-1] + count)
    return sums


@cache
def _works(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, dim: int) -> bool:
    """Try it on rows of different lengths, with and without a window."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    query = draw(sum(count for count, _ in _TRIAL), heads, dim).to(device, dtype)
    keys, values = (
        [draw(kv_heads, slots, dim).to(device, dtype) for _, slots in _TRIAL] for _ in range(2)
    )
    counts = [count for count, _ in _TRIAL]
    try:
        for window in (None, 3):
            found = attend_ragged(query, keys, values, counts, window, None)
            expected = by_rows(query, keys, values, counts, window)
            torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03)
    except Exception as error:  # a build of torch without it, a GPU that is too old
        logger.warning("%s attends row by row in %s: %s", device, dtype, error)
        return False
    return True


def by_rows(
    query: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    counts: Sequence[int],
    window: int | None,
) -> torch.Tensor:
    """What `attend_ragged` computes, one row after the other."""
    answers = []
    for new, key, value in zip(torch.split(query, list(counts)), keys, values, strict=True):
        slots = torch.arange(key.shape[1], device=query.device)
        mine = slots[key.shape[1] - len(new) :, None]
        seen = slots <= mine
        if window is not None:
            seen &= slots > mine - window
        answer = scaled_dot_product_attention(
            new.transpose(0, 1).unsqueeze(0),
            key.unsqueeze(0),
            value.unsqueeze(0),
            attn_mask=seen,
            enable_gqa=query.shape[1] != key.shape[0],
        )
        answers.append(answer[0].transpose(0, 1))
    return torch.cat(answers)
