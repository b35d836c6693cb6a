import inspect
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import draw
from tiny_models import SIZES, save_tiny
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from swarm.errors import BadSpanError, CheckpointError, NotServedError
from swarm.models import slice as slice_module
from swarm.models.building import building_model
from swarm.models.checkpoint import open_checkpoint
from swarm.models.layer_list import find_layers
from swarm.models.packed_attention import _RUNNING, ATTENTION_NAME, PassRow
from swarm.models.packed_linear import PackedLinear
from swarm.models.slice import BlockSlice
from swarm.models.slice_config import check_layers, sliced_config
from swarm.models.slice_proof import GrowingStore
from swarm.server.kv_cache import PagedCache
from swarm.spans import SessionId, Span

PACKED = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "phi",
    "phi3", "mixtral", "qwen3_moe", "opt", "cohere", "granite",
)  # fmt: skip
LENGTH = 21


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    return find_layers(model, model.config.num_hidden_layers)[1]


def whole_run(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the first layer and leaves the last one: `[length, hidden_size]` each."""
    seen: dict[str, torch.Tensor] = {}

    def enter(_layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen["in"] = (arguments[0] if arguments else named["hidden_states"])[0].clone()

    def leave(_layer: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        seen["out"] = (output[0] if isinstance(output, tuple) else output)[0].clone()

    layers = layers_of(model)
    hooks = [
        layers[0].register_forward_pre_hook(enter, with_kwargs=True),
        layers[-1].register_forward_hook(leave),
    ]
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen["in"], seen["out"]


class Chain:
    """Slices one behind the other, with two sessions that share every pass."""

    def __init__(self, slices: Sequence[BlockSlice]) -> None:
        self.slices = slices
        self.caches = [PagedCache(each.kv_shapes, 256, page_tokens=8) for each in slices]
        self.names = (SessionId(bytes(16)), SessionId(bytes([1]) * 16))
        for cache in self.caches:
            for name in self.names:
                cache.reserve(name, 1, 64)

    def run(self, sequences: Sequence[torch.Tensor], steps: Sequence[Sequence[int]]) -> list[Any]:
        """Feed each session's sequence in `steps`; what comes out of the last slice."""
        starts = [0] * len(sequences)
        answers: list[list[torch.Tensor]] = [[] for _ in sequences]
        for counts in steps:
            parts = [s[at : at + n] for s, at, n in zip(sequences, starts, counts, strict=True)]
            places = [torch.arange(at, at + n) for at, n in zip(starts, counts, strict=True)]
            hidden = torch.cat(parts)
            for blocks, cache in zip(self.slices, self.caches, strict=True):
                rows = [
                    PassRow(cache.row(name, 0), at, n)
                    for name, at, n in zip(self.names, starts, counts, strict=True)
                ]
                hidden = blocks.forward(hidden, torch.cat(places), rows, cache)
            for answer, piece in zip(answers, torch.split(hidden, list(counts)), strict=True):
                answer.append(piece)
            starts = [at + n for at, n in zip(starts, counts, strict=True)]
        return [torch.cat(answer) for answer in answers]


@pytest.mark.parametrize("architecture", PACKED)
def test_two_slices_are_the_model(architecture: str, tmp_path: Path) -> None:
    model = save_tiny(architecture, tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    ids = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    runs = [whole_run(model, row[None]) for row in ids]
    chain = Chain([BlockSlice.load(checkpoint, span) for span in (Span(0, 1), Span(1, 4))])
    steps = [(10, 3), (1, 9), (7, 1), (1, 1), (2, 7)]
    answers = chain.run([entering for entering, _ in runs], steps)
    for answer, (_, leaving) in zip(answers, runs, strict=True):
        scale = float(leaving.abs().max())
        torch.testing.assert_close(answer, leaving, atol=2e-5 * scale, rtol=0)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2", "opt", "qwen3_moe"])
def test_parts_of_overlapping_slices_are_the_model(architecture: str, tmp_path: Path) -> None:
    model = save_tiny(architecture, tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    ids = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    runs = [whole_run(model, row[None]) for row in ids]
    left, right = (BlockSlice.load(checkpoint, span) for span in (Span(0, 3), Span(1, 4)))
    for cut in (1, 2, 3):
        # The whole slices have run before and run again: their parts do not disturb them.
        for slices in (
            [left.part(Span(0, cut)), right.part(Span(cut, 4))],
            [left, right.part(Span(3, 4))],
        ):
            answers = Chain(slices).run([entering for entering, _ in runs], [(10, 3), (11, 18)])
            for answer, (_, leaving) in zip(answers, runs, strict=True):
                scale = float(leaving.abs().max())
                torch.testing.assert_close(answer, leaving, atol=2e-5 * scale, rtol=0)
    with pytest.raises(BadSpanError, match="not among 0:3"):
        left.part(Span(2, 4))


def test_bfloat16_is_served(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    blocks = BlockSlice.load(open_checkpoint(str(tmp_path)), Span(1, 3), dtype=torch.bfloat16)
    cache = PagedCache(blocks.kv_shapes, 64, dtype=blocks.dtype)
    cache.reserve(SessionId(bytes(16)), 1, 8)
    rows = [PassRow(cache.row(SessionId(bytes(16)), 0), 0, 3)]
    output = blocks.forward(torch.ones(3, 32, dtype=torch.bfloat16), torch.arange(3), rows, cache)
    assert output.dtype == torch.bfloat16
    assert blocks.bytes_per_token == 2 * 2 * 2 * 8 * 2


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_a_pass_longer_than_the_original_context_does_not_reach_other_sessions(
    rope_type: str, tmp_path: Path
) -> None:
    rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0}
    settings: dict[str, Any] = {"max_position_embeddings": 16}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
        rope["original_max_position_embeddings"] = 16
        settings["max_position_embeddings"] = 64
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}
    config = AutoConfig.for_model("llama", **sizes, **heads, **settings, rope_parameters=rope)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    blocks = BlockSlice.load(open_checkpoint(str(tmp_path)), Span(0, 2))
    assert not blocks.packs_sessions
    near = torch.randn(4, 32)
    places = torch.arange(4)
    alone = blocks.forward(near, places, [PassRow(0, 0, 4)], GrowingStore())
    together = blocks.forward(
        torch.cat((near, torch.randn(2, 32))),
        torch.cat((places, torch.tensor([40, 41]))),
        [PassRow(0, 0, 4), PassRow(1, 0, 2)],
        GrowingStore(),
    )
    assert torch.equal(together[:4], alone)


@pytest.mark.parametrize("far", [20, 40])
def test_a_far_pass_does_not_change_later_passes_of_others(far: int, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}
    config = AutoConfig.for_model(
        "llama", **sizes, **heads, max_position_embeddings=16, rope_parameters=rope
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    blocks = BlockSlice.load(open_checkpoint(str(tmp_path)), Span(0, 2))

    def result() -> torch.Tensor:
        # of a session that is itself longer than the original context
        places = torch.arange(14, 18)
        hidden = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
        return blocks.forward(hidden, places, [PassRow(0, 0, 4)], GrowingStore())

    before = result()
    blocks.forward(torch.randn(2, 32), torch.tensor([far, 300]), [PassRow(1, 0, 2)], GrowingStore())
    assert torch.equal(result(), before)


def test_parts_leave_nothing_on_the_layers_and_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny("llama", tmp_path)
    blocks = BlockSlice.load(open_checkpoint(str(tmp_path)), Span(0, 4))
    spans = [Span(start, end) for start in range(4) for end in range(start + 1, 5)]
    monkeypatch.setattr(slice_module, "MAX_PARTS", 4)
    parts = {span: blocks.part(span) for span in spans}
    assert len(blocks._parts) == 4
    assert blocks.part(spans[-1]) is parts[spans[-1]]
    for part in parts.values():
        part.forward(torch.ones(2, 32), torch.arange(2), [PassRow(0, 0, 2)], GrowingStore())
    for layer in find_layers(blocks.model, 4)[1]:
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks


@pytest.mark.parametrize(
    ("architecture", "makes_masks"), [("llama", False), ("gpt2", False), ("gemma3_text", True)]
)
def test_a_model_that_sees_everything_is_asked_for_no_mask(
    architecture: str, makes_masks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(architecture, tmp_path)
    blocks = BlockSlice.load(open_checkpoint(str(tmp_path)), Span(0, 4))
    made = []
    real = AttentionMaskInterface._global_mapping[ATTENTION_NAME]

    def make(*arguments: Any, **named: Any) -> Any:
        made.append(named)
        return real(*arguments, **named)

    monkeypatch.setitem(AttentionMaskInterface._global_mapping, ATTENTION_NAME, make)
    for each in (blocks, blocks.part(Span(1, 3))):
        each.forward(torch.ones(2, 32), torch.arange(2), [PassRow(0, 0, 2)], GrowingStore())
    assert bool(made) is makes_masks


def test_a_model_that_changes_masks_makes_them(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    model = type(BlockSlice.load(open_checkpoint(str(tmp_path)), Span(0, 1)).model)
    changed: list[Any] = []
    plain = model.forward

    def forward(self: Any, *arguments: Any, attention_mask: Any = None, **named: Any) -> Any:
        if attention_mask is not None:
            changed.append(attention_mask)
            attention_mask = attention_mask * 1
        return plain(self, *arguments, attention_mask=attention_mask, **named)

    forward.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model, "forward", forward)
        blocks = BlockSlice.load(open_checkpoint(str(tmp_path)), Span(0, 4))
    assert len(changed) == 1 and blocks.packs_sessions and blocks._mask is None


def test_weights_that_are_used_otherwise_than_by_linear_layers_stay_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny("llama", tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    packed = BlockSlice.load(checkpoint, Span(0, 1))
    assert any(isinstance(module, PackedLinear) for module in packed.model.modules())
    monkeypatch.setattr(PackedLinear, "forward", lambda self, hidden: hidden @ self.weight.T)
    plain = BlockSlice.load(checkpoint, Span(0, 1))
    assert not any(isinstance(module, PackedLinear) for module in plain.model.modules())
    before, after = (
        dict(each.model.named_modules())["layers.0.mlp.up_proj"] for each in (packed, plain)
    )
    assert torch.equal(before.weight.to_dense(), after.weight)


def test_only_the_tensors_of_the_span_are_read(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    seen: list[tuple[int, int]] = []
    blocks = BlockSlice.load(
        checkpoint, Span(1, 3), progress=lambda done, total: seen.append((done, total))
    )
    names = checkpoint.block_tensors(Span(1, 3))
    assert checkpoint.bytes_read == sum(checkpoint.tensors[name].nbytes for name in names.values())
    assert seen == [(done + 1, len(names)) for done in range(len(names))]
    largest = max(int(parameter.numel()) for parameter in blocks.model.parameters())
    assert largest <= 48 * 32


_PEAK = """
from swarm.models.checkpoint import open_checkpoint
from swarm.models.slice import BlockSlice
from swarm.spans import Span

def resident(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

checkpoint = open_checkpoint(None)
warm = BlockSlice.load(checkpoint, Span(29, 30))
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # the peak counts from here
before = resident("VmRSS")
blocks = BlockSlice.load(checkpoint, Span(0, 5))
print(resident("VmHWM") - before)
"""


def test_the_peak_of_memory_is_the_span_and_little_more() -> None:
    layer = 576 * (2 * 576 + 2 * 192 + 3 * 1536) + 2 * 576
    run = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 1.2 * 5 * layer * 4


def test_blocks_outside_the_model_are_refused(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    with pytest.raises(BadSpanError):
        BlockSlice.load(open_checkpoint(str(tmp_path)), Span(2, 5))


def test_missing_and_misshapen_tensors_are_refused(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    names = checkpoint.block_tensors(Span(0, 2))
    tensors = checkpoint.read(names.values())
    state = {name: tensors[stored] for name, stored in names.items()}
    lacking = {
        name: value for name, value in state.items() if not name.endswith("0.mlp.up_proj.weight")
    }
    with pytest.raises(CheckpointError, match="up_proj"):
        BlockSlice.from_tensors(model.config, lacking, Span(0, 2))
    misshapen = {name: value[:-1] if "q_proj" in name else value for name, value in state.items()}
    with pytest.raises(CheckpointError, match="0:2"):
        BlockSlice.from_tensors(model.config, misshapen, Span(0, 2))


def test_a_layer_that_depends_on_its_index_in_an_unknown_way_is_found(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path)
    span = Span(1, 3)
    part = type(model.model)(sliced_config(model.config, span))
    check_layers(part, model.config, span)
    for layer in part.layers:
        layer.self_attn.scaling *= 1 + layer.self_attn.layer_idx
    with pytest.raises(NotServedError, match=r"block 2 .*self_attn.scaling"):
        check_layers(part, model.config, span)


def test_settings_of_layers_are_shifted() -> None:
    config = AutoConfig.for_model(
        "qwen3_moe", num_hidden_layers=6, mlp_only_layers=[0, 3, 5], vocab_size=1000
    )
    assert sliced_config(config, Span(2, 5)).mlp_only_layers == [1]
    config = AutoConfig.for_model("deepseek_v3", num_hidden_layers=6, first_k_dense_replace=3)
    assert sliced_config(config, Span(2, 5)).first_k_dense_replace == 1
    assert sliced_config(config, Span(4, 5)).first_k_dense_replace == 0
    config = AutoConfig.for_model(
        "gemma3_text",
        num_hidden_layers=3,
        layer_types=["sliding_attention"] * 2 + ["full_attention"],
    )
    assert sliced_config(config, Span(1, 3)).layer_types == ["sliding_attention", "full_attention"]
    assert config.num_hidden_layers == 3


# ---- the proof in half precision


DEEP = {
    "num_hidden_layers": 80, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16,
}  # fmt: skip


def deep_folder(folder: Path) -> Path:
    """A random model of 80 blocks; saved in float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", **SIZES | DEEP), dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    return folder


def test_a_deep_model_passes_in_bfloat16_and_a_wrong_block_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rounding adds up over 80 blocks to more than one wrong block in the middle changes."""
    checkpoint = open_checkpoint(str(deep_folder(tmp_path)))
    blocks = BlockSlice.load(checkpoint, Span(0, 80), dtype=torch.bfloat16)
    assert blocks.packs_sessions
    right = blocks._layers[40].forward

    def wrong(hidden: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        """Rows of a packed pass see each other."""
        output: torch.Tensor = right(hidden, *arguments, **named)
        if _RUNNING.current is not None:
            output = output + 0.2 * output.roll(1, dims=1)
        return output

    monkeypatch.setattr(blocks._layers[40], "forward", wrong)
    with pytest.raises(NotServedError, match="in several passes"):
        blocks._prove(torch.empty(0, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss", "olmoe", "gemma3_text", "llama"])
def test_half_precision_packs(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Also where rounding sends tokens to other experts."""
    with building_model():
        draw(architecture).save_pretrained(tmp_path)
    blocks = BlockSlice.load(open_checkpoint(str(tmp_path)), Span(0, 5), dtype=dtype)
    assert blocks.packs_sessions, blocks.alone_because
