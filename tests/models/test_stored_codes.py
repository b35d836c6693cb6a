"""Checkpoints that were published in few bits: what is decoded, what is read, what is refused."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
from compared_slices import TOLERANCE, WAYS, Chain, logits_of, prompts_without_ties
from safetensors.torch import load_file, save_file
from tiny_models import SIZES
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    FineGrainedFP8Config,
    Mxfp4Config,
    PreTrainedModel,
)

from swarm.errors import CheckpointError, NotServedError
from swarm.models.building import building_model
from swarm.models.checkpoint import open_checkpoint
from swarm.models.quantization_error import quantization_error
from swarm.models.safetensors_source import SINGLE_NAME
from swarm.models.shell import load_shell
from swarm.models.slice import BlockSlice
from swarm.spans import Span

MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
TILE = [16, 8]
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": TILE}
MODELS: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "sliding_window": 8,
        "num_local_experts": 4, "num_experts_per_tok": 2,
    },
    "llama": {},
    "deepseek_v3": {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
        "q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "num_key_value_heads": 4,
    },
}  # fmt: skip
CODES = {"gpt_oss": MXFP4, "llama": FP8, "deepseek_v3": FP8}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))


def save_stored(architecture: str, folder: Path) -> None:
    """A tiny model whose large weights are random numbers in the architecture's code."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(SIZES | MODELS[architecture]))
    with building_model():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
    stored = load_file(folder / SINGLE_NAME)
    code = _mxfp4 if architecture == "gpt_oss" else _fp8
    save_file(code(stored), folder / SINGLE_NAME)
    change_config(folder, quantization_config=CODES[architecture])


def _mxfp4(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            found[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        found[f"{name}_blocks"] = torch.randint(
            256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8
        )
        found[f"{name}_scales"] = torch.randint(
            121, 126, (experts, outputs, inputs // 32), dtype=torch.uint8
        )
    return found


def _fp8(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        found[name] = tensor
        if not name.endswith("_proj.weight") and "_proj_with_mqa" not in name:
            continue
        rows, columns = tensor.shape
        factors = torch.rand(-(-rows // TILE[0]), -(-columns // TILE[1])) * 0.05 + 0.01
        found[name] = (tensor / 0.03).to(torch.float8_e4m3fn)
        found[f"{name}_scale_inv"] = factors
    return found


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def by_transformers(architecture: str, folder: Path) -> PreTrainedModel:
    options = (
        Mxfp4Config(dequantize=True)
        if architecture == "gpt_oss"
        else FineGrainedFP8Config(weight_block_size=tuple(TILE), dequantize=True)
    )
    with building_model():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=options, dtype=torch.float32
        )
    return model.eval()


@pytest.mark.parametrize("architecture", MODELS)
def test_slices_compute_what_transformers_makes_of_it(architecture: str, tmp_path: Path) -> None:
    save_stored(architecture, tmp_path)
    model = by_transformers(architecture, tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    ids = prompts_without_ties(model)
    expected = logits_of(model, ids)
    parts = []
    for span in (Span(0, 1), Span(1, 4)):
        before = checkpoint.bytes_read
        parts.append(BlockSlice.load(checkpoint, span))
        own = checkpoint.block_tensors(span).values()
        assert checkpoint.bytes_read - before == sum(checkpoint.tensors[n].nbytes for n in own)
    for part in parts:
        mine = part.model.state_dict()
        for name, tensor in mine.items():
            index, dot, rest = name.removeprefix("layers.").partition(".")
            whole = f"model.layers.{int(index) + part.span.start}{dot}{rest}"
            assert torch.equal(tensor, model.state_dict()[whole]), whole
    chain = Chain(parts)
    shell = load_shell(checkpoint, torch.float32, lambda _: chain)
    for name, way in WAYS.items():
        chain.way = way
        difference = (logits_of(shell, ids) - expected).abs().max() / expected.std()
        assert float(difference) <= TOLERANCE, name
    stored = load_file(tmp_path / SINGLE_NAME)
    assert checkpoint.bytes_read == sum(tensor.nbytes for tensor in stored.values())


def test_a_tile_may_end_outside_of_its_matrix(tmp_path: Path) -> None:
    """As that of DeepSeek-V3's 576 rows does; and one factor may be for all of a tensor."""
    save_stored("llama", tmp_path)
    stored = load_file(tmp_path / SINGLE_NAME)
    ragged, single = (f"model.layers.2.mlp.{kind}_proj.weight" for kind in ("up", "gate"))
    stored[f"{ragged}_scale_inv"] = factors = torch.rand(2, 3)
    stored[f"{single}_scale_inv"] = torch.tensor(0.25)
    stored["model.layers.2.mlp.up_proj.activation_scale"] = torch.tensor(1.0)
    for other in [name for name in stored if name.endswith("_scale_inv")]:
        if other not in (f"{ragged}_scale_inv", f"{single}_scale_inv"):
            rows, columns = stored[other.removesuffix("_scale_inv")].shape
            stored[other] = torch.ones(-(-rows // 32), -(-columns // 15))
    save_file(stored, tmp_path / SINGLE_NAME)
    change_config(tmp_path, quantization_config=FP8 | {"weight_block_size": [32, 15]})
    read = open_checkpoint(str(tmp_path)).read([ragged, single])
    assert stored[ragged].shape == (48, 32)
    for row in range(48):
        for column in range(32):
            expected = stored[ragged][row, column].float() * factors[row // 32, column // 15]
            assert read[ragged][row, column] == expected
    assert torch.equal(read[single], stored[single].float() * 0.25)


@pytest.mark.parametrize("architecture", ["gpt_oss", "llama"])
def test_identity_and_digests_cover_numbers_and_scales(architecture: str, tmp_path: Path) -> None:
    save_stored(architecture, tmp_path)
    part = "mlp.experts.down_proj_scales" if architecture == "gpt_oss" else (
        "mlp.down_proj.weight_scale_inv"
    )  # fmt: skip
    before = open_checkpoint(str(tmp_path))
    stored = load_file(tmp_path / SINGLE_NAME)
    changed = stored[f"model.layers.1.{part}"]
    changed.view(torch.uint8).reshape(-1)[-1] ^= 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((tmp_path / "config.json").read_text())
    save_file(stored, other / SINGLE_NAME)
    after = open_checkpoint(str(other))
    same = [before.block_digest(block) == after.block_digest(block) for block in range(4)]
    assert same == [True, False, True, True]
    assert before.tensors.keys() == after.tensors.keys()
    if architecture == "llama":
        identity = before.identity
        change_config(tmp_path, quantization_config=FP8 | {"weight_block_size": [15, 8]})
        with pytest.raises(CheckpointError, match="instead of"):
            open_checkpoint(str(tmp_path))
        change_config(tmp_path, quantization_config=FP8 | {"modules_to_not_convert": ["lm_head"]})
        assert open_checkpoint(str(tmp_path)).identity == identity


def test_stored_bytes_run_over_both_parts(tmp_path: Path) -> None:
    save_stored("gpt_oss", tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    name = "model.layers.0.mlp.experts.down_proj"
    stored = load_file(tmp_path / SINGLE_NAME)
    whole = b"".join(bytes(stored[name + part].numpy()) for part in ("_blocks", "_scales"))
    edge = stored[f"{name}_blocks"].nbytes
    assert checkpoint.tensors[name].nbytes == len(whole)
    for start, end in [
        (0, len(whole)), (0, edge), (edge, len(whole)), (edge - 3, edge + 5), (7, 7), (edge, edge),
    ]:  # fmt: skip
        assert checkpoint._source.stored_bytes(name, start, end) == whole[start:end]


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "torchao"),
        ({"quant_method": "not-yet-thought-of"}, "not-yet-thought-of"),
        ({"bits": 3}, "leaves out"),
    ],
)
def test_other_methods_are_refused_in_one_line(
    settings: dict[str, Any], method: str, tmp_path: Path
) -> None:
    config = AutoConfig.for_model("llama", **SIZES).to_dict() | {"quantization_config": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / SINGLE_NAME).touch()  # it is not even opened
    with pytest.raises(NotServedError, match=rf"{method}.*GGUF") as caught:
        open_checkpoint(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert tmp_path.name in str(caught.value)


@pytest.mark.parametrize("architecture", ["gpt_oss", "llama"])
@pytest.mark.parametrize("fault", ["no scales", "no numbers", "other shape", "other dtype"])
def test_parts_that_do_not_fit_are_named(architecture: str, fault: str, tmp_path: Path) -> None:
    save_stored(architecture, tmp_path)
    numbers, scales = {
        "gpt_oss": ("experts.down_proj_blocks", "experts.down_proj_scales"),
        "llama": ("down_proj.weight", "down_proj.weight_scale_inv"),
    }[architecture]
    numbers, scales = (f"model.layers.1.mlp.{part}" for part in (numbers, scales))
    stored = load_file(tmp_path / SINGLE_NAME)
    if fault == "no scales":
        del stored[scales]
    elif fault == "no numbers":
        del stored[numbers]
    elif fault == "other shape":
        stored[scales] = stored[scales][..., :1].repeat_interleave(7, -1)
    else:
        stored[scales] = stored[scales].to(torch.int16)
    save_file(stored, tmp_path / SINGLE_NAME)
    with pytest.raises(CheckpointError, match=r"layers\.1\.") as caught:
        open_checkpoint(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_what_was_decoded_may_be_quantized_anew(tmp_path: Path) -> None:
    save_stored("llama", tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    blocks = BlockSlice.load(checkpoint, Span(1, 3), quantization="int8")
    assert 0.0005 < quantization_error(checkpoint, blocks) < 0.05


def test_a_tile_that_is_none_is_told(tmp_path: Path) -> None:
    save_stored("llama", tmp_path)
    change_config(tmp_path, quantization_config=FP8 | {"weight_block_size": [16, 0]})
    with pytest.raises(CheckpointError, match=r"weight_block_size .* \[16, 0\]"):
        open_checkpoint(str(tmp_path))
