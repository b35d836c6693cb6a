from types import SimpleNamespace

import pytest
import torch

from swarm.errors import NotServedError
from swarm.models.packed_attention import (
    PackedPass,
    PassRow,
    packed_attention,
    running_pass,
)
from swarm.models.slice_proof import GrowingStore

HEADS, KV_HEADS, K_DIM, V_DIM = 4, 2, 8, 6
STEPS = [(5, 1, 3), (1, 4, 1), (1, 1, 1), (6, 2, 1)]
LAYER = SimpleNamespace(layer_idx=0)


def expected(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    """Attention of one whole sequence, written out; `[heads, tokens, dim]` in, likewise out."""
    key = key.repeat_interleave(HEADS // KV_HEADS, 0)
    value = value.repeat_interleave(HEADS // KV_HEADS, 0)
    scores = query @ key.transpose(1, 2) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    slots = torch.arange(query.shape[1])
    seen = slots[None] <= slots[:, None]
    if window is not None:
        seen &= slots[None] > slots[:, None] - window
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is None:
        return torch.softmax(scores, -1) @ value
    padded = torch.cat((scores, sinks.view(-1, 1, 1).expand(-1, scores.shape[1], 1)), -1)
    return torch.softmax(padded, -1)[..., :-1] @ value


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
def test_ragged_rows_attend_to_themselves_only(
    window: int | None, softcap: float | None, with_sinks: bool, padding: int
) -> None:
    torch.manual_seed(0)
    sinks = torch.randn(HEADS) if with_sinks else None
    lengths = [sum(counts) for counts in zip(*STEPS, strict=True)]
    queries = [torch.randn(HEADS, length, K_DIM) for length in lengths]
    keys = [torch.randn(KV_HEADS, length, K_DIM) for length in lengths]
    values = [torch.randn(KV_HEADS, length, V_DIM) for length in lengths]
    found: list[list[torch.Tensor]] = [[] for _ in lengths]
    kv, starts = GrowingStore(), [0] * len(lengths)
    for counts in STEPS:
        parts = [slice(s, s + c) for s, c in zip(starts, counts, strict=True)]
        rows = [PassRow(row, s, c) for row, (s, c) in enumerate(zip(starts, counts, strict=True))]

        def packed_of(whole: list[torch.Tensor], parts: list[slice] = parts) -> torch.Tensor:
            pieces = [each[:, part] for each, part in zip(whole, parts, strict=True)]
            return torch.cat([*pieces, torch.randn_like(whole[0][:, :padding])], 1).unsqueeze(0)

        with running_pass(PackedPass(rows, kv.begin(rows))):
            answer, weights = packed_attention(
                LAYER,  # type: ignore[arg-type]
                packed_of(queries),
                packed_of(keys),
                packed_of(values),
                None,
                scaling=0.3,
                sliding_window=window,
                softcap=softcap,
                s_aux=sinks,
            )
        assert weights is None
        assert answer.shape == (1, sum(counts) + padding, HEADS, V_DIM)
        for row, piece in enumerate(torch.split(answer[0, : sum(counts)], list(counts))):
            found[row].append(piece)
        starts = [s + c for s, c in zip(starts, counts, strict=True)]
    for row in range(len(lengths)):
        whole = expected(queries[row], keys[row], values[row], window, softcap, sinks, 0.3)
        torch.testing.assert_close(
            torch.cat(found[row]).transpose(0, 1), whole, atol=1e-5, rtol=1e-5
        )


def attend(**arguments: object) -> None:
    rows = [PassRow(0, 0, 2)]
    query, key = torch.randn(1, HEADS, 2, K_DIM), torch.randn(1, KV_HEADS, 2, K_DIM)
    with running_pass(PackedPass(rows, GrowingStore().begin(rows))):
        packed_attention(LAYER, query, key, key, None, **arguments)  # type: ignore[arg-type]


def test_arguments_that_would_change_the_result_are_refused() -> None:
    attend(position_ids=torch.arange(2), use_cache=False, output_attentions=None)
    for unknown in (
        {"position_bias": torch.zeros(1)},
        {"temperature": 2.0},
        {"output_attentions": True},
        {"dropout": 0.1},
        {"is_causal": False},
    ):
        with pytest.raises(NotServedError):
            attend(**unknown)


def test_it_runs_inside_a_pass_only_and_once_a_layer() -> None:
    query, key = torch.randn(1, HEADS, 1, K_DIM), torch.randn(1, KV_HEADS, 1, K_DIM)
    with pytest.raises(NotServedError):
        packed_attention(LAYER, query, key, key, None)  # type: ignore[arg-type]
    rows = [PassRow(0, 0, 1)]
    with running_pass(PackedPass(rows, GrowingStore().begin(rows))):
        packed_attention(LAYER, query, key, key, None)  # type: ignore[arg-type]
        with pytest.raises(NotServedError, match="twice"):
            packed_attention(LAYER, query, key, key, None)  # type: ignore[arg-type]
