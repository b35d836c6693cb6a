"""One kernel for the rows of a pass: what it is given on any machine, what it computes on a GPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import draw
from torch.nn.functional import scaled_dot_product_attention

from swarm.models.building import building_model
from swarm.models.checkpoint import open_checkpoint
from swarm.models.packed_attention import PassRow
from swarm.models.slice import BlockSlice
from swarm.models.slice_proof import GrowingStore
from swarm.models.varlen_attention import attend_ragged, by_rows, fits
from swarm.spans import Span

COUNTS, LENGTHS = (3, 1, 6), (9, 4, 6)


def documented_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What torch says of `varlen_attn`: `window_size[0]` slots to the left, queries at the end."""
    assert window_size[1] == 0
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    answers = []
    for row in range(len(cu_seq_q) - 1):
        mine = query[cu_seq_q[row] : cu_seq_q[row + 1]].transpose(0, 1)
        keys, values = (
            each[cu_seq_k[row] : cu_seq_k[row + 1]].transpose(0, 1) for each in (key, value)
        )
        assert mine.shape[1] <= max_q and keys.shape[1] <= max_k
        places = torch.arange(keys.shape[1])
        own = places[keys.shape[1] - mine.shape[1] :, None]
        seen = places <= own
        if window_size[0] >= 0:
            seen &= places >= own - window_size[0]
        answer = scaled_dot_product_attention(
            mine[None], keys[None], values[None], seen, scale=scale, enable_gqa=enable_gqa
        )
        answers.append(answer[0].transpose(0, 1))
    return torch.cat(answers)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_kernel_is_given_the_rows_of_a_pass(window: int | None, kv_heads: int) -> None:
    query = torch.randn(sum(COUNTS), 4, 8)
    keys, values = ([torch.randn(kv_heads, n, 8) for n in LENGTHS] for _ in range(2))
    found = attend_ragged(query, keys, values, COUNTS, window, None, kernel=documented_kernel)
    torch.testing.assert_close(found, by_rows(query, keys, values, COUNTS, window))


@pytest.mark.parametrize("window", [None, 3])
def test_torchs_own_kernel_takes_what_it_is_given(window: int | None) -> None:
    """Its arguments and shapes, on no device: the numbers need a GPU."""
    query = torch.empty(sum(COUNTS), 4, 64, dtype=torch.bfloat16, device="meta")
    keys, values = (
        [torch.empty(2, n, 64, dtype=torch.bfloat16, device="meta") for n in LENGTHS]
        for _ in range(2)
    )
    found = attend_ragged(query, keys, values, COUNTS, window, 0.125)
    assert (found.shape, found.dtype) == (query.shape, query.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_kernel_is_used_where_there_is_none(dtype: torch.dtype) -> None:
    assert not fits(torch.ones(1, 4, 3, 8, dtype=dtype), torch.ones(1, 2, 3, 8, dtype=dtype))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 128])
def test_torchs_kernel_works_on_this_gpu(dtype: torch.dtype, dim: int) -> None:
    query, value = torch.ones(1, 8, 3, dim), torch.ones(1, 2, 3, dim)
    assert fits(query.to("cuda", dtype), value.to("cuda", dtype))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "gemma2", "gpt_oss", "mixtral", "bloom", "falcon_h1"]
)
def test_slices_on_a_gpu_compute_what_they_do_on_a_cpu(
    architecture: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = draw(architecture)
    with building_model():
        model.save_pretrained(tmp_path)
    inputs = torch.randn(12, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    found = [_two_sessions(tmp_path, inputs, device, dtype) for device in ("cpu", "cuda")]
    differences = (found[1] - found[0]).abs().amax(-1) / found[0].abs().max()
    if dtype is torch.float32:
        assert float(differences.max()) < 1e-4
    else:  # where rounding decides, tokens go to other experts on the one and on the other
        assert float(differences.median()) < 0.06


def _two_sessions(folder: Path, inputs: torch.Tensor, device: str, dtype: Any) -> torch.Tensor:
    blocks = BlockSlice.load(open_checkpoint(str(folder)), Span(1, 4), dtype=dtype, device=device)
    kv, given = GrowingStore(), inputs.to(device, dtype)
    outputs = []
    for first, (left, right) in ((0, ((0, 3), (0, 3))), (6, ((3, 1), (3, 5)))):
        rows = [PassRow(0, *left), PassRow(1, *right)]
        places = torch.cat([torch.arange(row.start, row.start + row.count) for row in rows])
        part = given[first : first + len(places)]
        outputs.append(blocks.forward(part, places.to(device), rows, kv).float().cpu())
    return torch.cat(outputs)
