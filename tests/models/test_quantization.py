"""int8 and nf4 slices: within the bounds of their codes, provable, and as large as planned."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, save_tiny
from torch import nn
from transformers import PreTrainedModel

from swarm.errors import UsageError
from swarm.models import quantization
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.quantization import block_bytes
from swarm.models.quantization_error import quantization_error
from swarm.models.shell import load_shell
from swarm.models.slice import BlockSlice
from swarm.spans import Span

needs_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in quantization.LIBRARIES.values()),
    reason="torchao and bitsandbytes are not installed",
)
KINDS: list[quantization.Quantization] = ["int8", "nf4"]

NF4_LARGEST_STEP = 1.0 - 0.6961928
"""Between the two outermost of the code's 16 values, as a share of a group's largest weight."""


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setitem(SIZES, "hidden_size", 64)
    monkeypatch.setitem(SIZES, "intermediate_size", 128)
    save_tiny("llama", tmp_path / "tiny")
    return open_checkpoint(str(tmp_path / "tiny"))


def weight_of(linear: nn.Module) -> torch.Tensor:
    """What the layer multiplies with, however it is stored."""
    with torch.inference_mode():
        found: torch.Tensor = linear(torch.eye(linear.in_features)).T
    return found


def int8_bound(weight: torch.Tensor) -> torch.Tensor:
    """Half a step of 1/127 of the row's largest weight, and what rounding the scale adds."""
    return weight.abs().amax(dim=1, keepdim=True) / 127 * 0.51


def nf4_bound(weight: torch.Tensor) -> torch.Tensor:
    """Half a step, and what bfloat16 adds, in which some processors compute."""
    groups = weight.reshape(-1, 64).abs().amax(dim=1, keepdim=True)
    return (groups * (NF4_LARGEST_STEP / 2 + 2**-8)).expand(-1, 64).reshape(weight.shape)


@needs_libraries
@pytest.mark.parametrize(("kind", "bound"), [("int8", int8_bound), ("nf4", nf4_bound)])
def test_every_weight_is_within_the_bound_of_its_code(
    checkpoint: Checkpoint,
    kind: quantization.Quantization,
    bound: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    span = Span(1, 3)
    blocks = BlockSlice.load(checkpoint, span, quantization=kind)
    assert blocks.packs_sessions
    names = checkpoint.block_tensors(span)
    checked = 0
    for name, module in blocks.model.named_modules():
        if "proj" not in name.rpartition(".")[2]:
            continue
        stored = checkpoint.read([names[f"model.{name}.weight"]])[names[f"model.{name}.weight"]]
        difference = (weight_of(module) - stored).abs()
        assert (difference <= bound(stored)).all(), name
        assert difference.max() > 0, name
        checked += 1
    assert checked == 7 * len(span)


@needs_libraries
def test_the_error_is_that_of_the_code(checkpoint: Checkpoint) -> None:
    """A rounding error that is uniform in a step s has a spread of s/sqrt(12).

    int8: s = 2/127 of a row's largest of 64 or 128 normal weights (about 2.5 sigma), so 0.6 % of
    each product; nf4 about 9 % (Dettmers et al. 2023). Errors of the layers of a block add up as
    independent ones: at most a few times as much.
    """
    whole = Span(0, checkpoint.num_blocks)
    plain = quantization_error(checkpoint, BlockSlice.load(checkpoint, whole))
    int8 = quantization_error(checkpoint, BlockSlice.load(checkpoint, whole, quantization="int8"))
    nf4 = quantization_error(checkpoint, BlockSlice.load(checkpoint, whole, quantization="nf4"))
    assert plain < 1e-5
    assert 0.001 < int8 < 0.03
    assert 0.03 < nf4 < 0.5
    assert nf4 > 4 * int8


@needs_libraries
def test_the_error_is_that_of_a_block_however_many_there_are(checkpoint: Checkpoint) -> None:
    """Of a span it is the median of its blocks' own, not their sum, and a block has the same error
    whatever the size of what it is given."""
    whole = BlockSlice.load(checkpoint, Span(0, 3), quantization="int8")
    single = [
        quantization_error(checkpoint, BlockSlice.load(checkpoint, span, quantization="int8"))
        for span in (Span(0, 1), Span(1, 2), Span(2, 3))
    ]
    assert min(single) * 0.8 < quantization_error(checkpoint, whole) < max(single) * 1.25
    large = 50 * torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    assert quantization_error(checkpoint, whole, probe=large) < max(single) * 1.5


@needs_libraries
@pytest.mark.matrix
@pytest.mark.parametrize("kind", KINDS)
def test_random_tokens_stand_for_a_text(kind: quantization.Quantization) -> None:
    checkpoint = open_checkpoint()
    text = "The keeper of the lighthouse wrote down every ship that passed, and its flag."
    ids = checkpoint.load_tokenizer()(text, return_tensors="pt").input_ids[0]
    shell = load_shell(checkpoint, torch.float32, lambda _: nn.Identity())
    blocks = BlockSlice.load(checkpoint, Span(0, 10), quantization=kind)
    with torch.inference_mode():
        of_text = quantization_error(checkpoint, blocks, probe=shell.get_input_embeddings()(ids))
    assert 0.75 < quantization_error(checkpoint, blocks) / of_text < 1.33


@needs_libraries
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_planned_size_is_the_real_one(
    checkpoint: Checkpoint, kind: quantization.Quantization, dtype: torch.dtype
) -> None:
    planned = block_bytes(checkpoint.model_class, checkpoint.config, dtype, kind)
    blocks = BlockSlice.load(checkpoint, Span(0, 2), dtype=dtype, quantization=kind)
    held = held_bytes(blocks.model)
    assert held <= sum(planned[:2]) <= held * (1.01 if kind == "int8" else 1.07)
    plain = block_bytes(checkpoint.model_class, checkpoint.config, dtype, "none")
    assert planned[0] < plain[0] * (0.3 if dtype == torch.float32 else 0.6)


def held_bytes(model: PreTrainedModel) -> int:
    total = 0
    for parameter in model.parameters():
        if hasattr(parameter, "quant_state"):
            state = parameter.quant_state
            total += parameter.numel() + state.absmax.numel() * state.absmax.itemsize
        elif hasattr(parameter, "qdata"):
            for part in (parameter.qdata, parameter.scale, parameter.zero_point):
                total += part.numel() * part.itemsize
        else:
            total += parameter.numel() * parameter.itemsize
    return total


@needs_libraries
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_spans_tensors_are_read(
    checkpoint: Checkpoint, kind: quantization.Quantization
) -> None:
    BlockSlice.load(checkpoint, Span(2, 3), quantization=kind)
    names = checkpoint.block_tensors(Span(2, 3)).values()
    assert checkpoint.bytes_read == sum(checkpoint.tensors[name].nbytes for name in names)


@needs_libraries
@pytest.mark.matrix
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "architecture",
    ["qwen2", "qwen3", "gemma2", "gpt2", "gpt_neox", "phi3", "mixtral", "qwen3_moe", "opt"],
)
def test_other_architectures(
    tmp_path: Path, architecture: str, kind: quantization.Quantization
) -> None:
    save_tiny(architecture, tmp_path / "tiny")
    checkpoint = open_checkpoint(str(tmp_path / "tiny"))
    blocks = BlockSlice.load(checkpoint, Span(1, 4), quantization=kind)
    assert quantization_error(checkpoint, blocks) < (0.1 if kind == "int8" else 0.7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_library_is_named_in_one_line(
    checkpoint: Checkpoint, kind: quantization.Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"{quantization.LIBRARIES[kind]}.*pip install") as caught:
        BlockSlice.load(checkpoint, Span(0, 1), quantization=kind)
    assert "\n" not in str(caught.value)
