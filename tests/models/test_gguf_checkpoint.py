"""GGUF files of several architectures and types load as transformers loads them."""

from pathlib import Path
from typing import Any

import gguf
import platformdirs
import pytest
import torch
from gguf_files import write_tensors
from transformers import AutoModelForCausalLM

from swarm.errors import CheckpointError, NotServedError
from swarm.models.checkpoint import open_checkpoint
from swarm.spans import Span

HIDDEN, INNER, VOCABULARY, BLOCKS = 64, 96, 40, 3
EXPERT = 768  # the one size that transformers assumes for this architecture
Types = gguf.GGMLQuantizationType


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))


def write_gguf(
    path: Path, architecture: str, shapes: dict[str, tuple[int, ...]], kind: Any
) -> Path:
    """A file of random tensors; matrices are stored as `kind`, the rest as float32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(BLOCKS)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(VOCABULARY)])
    if architecture != "llama":
        writer.add_key_length(16)
        writer.add_value_length(16)
    if "moe" in architecture:
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(EXPERT)
    write_tensors(writer, shapes, kind)
    return path


def settings(config: Any) -> dict[str, Any]:
    """All but what loading a model adds."""
    added = ("dtype", "_name_or_path", "architectures", "quantization_config")
    return {key: value for key, value in config.to_dict().items() if key not in added}


def blocks(parts: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"blk.{b}.{name}": shape for b in range(BLOCKS) for name, shape in parts.items()}


LLAMA = {
    "token_embd.weight": (VOCABULARY, HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "output.weight": (VOCABULARY, HIDDEN),
    "rope_freqs.weight": (8,),  # stored by llama.cpp, unknown to the model
} | blocks(
    {
        "attn_norm.weight": (HIDDEN,),
        "ffn_norm.weight": (HIDDEN,),
        "attn_q.weight": (HIDDEN, HIDDEN),
        "attn_k.weight": (HIDDEN // 2, HIDDEN),
        "attn_v.weight": (HIDDEN // 2, HIDDEN),
        "attn_output.weight": (HIDDEN, HIDDEN),
        "ffn_gate.weight": (INNER, HIDDEN),
        "ffn_up.weight": (INNER, HIDDEN),
        "ffn_down.weight": (HIDDEN, INNER),
    }
)
GPT2 = {
    "token_embd.weight": (VOCABULARY, HIDDEN),
    "position_embd.weight": (1024, HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "output_norm.bias": (HIDDEN,),
    "output.weight": (VOCABULARY, HIDDEN),
} | blocks(
    {
        "attn_norm.weight": (HIDDEN,),
        "attn_norm.bias": (HIDDEN,),
        "ffn_norm.weight": (HIDDEN,),
        "ffn_norm.bias": (HIDDEN,),
        "attn_qkv.weight": (3 * HIDDEN, HIDDEN),
        "attn_qkv.bias": (3 * HIDDEN,),
        "attn_output.weight": (HIDDEN, HIDDEN),
        "attn_output.bias": (HIDDEN,),
        "ffn_up.weight": (4 * HIDDEN, HIDDEN),
        "ffn_up.bias": (4 * HIDDEN,),
        "ffn_down.weight": (HIDDEN, 4 * HIDDEN),
        "ffn_down.bias": (HIDDEN,),
    }
)
GEMMA2 = {
    name: shape
    for name, shape in LLAMA.items()
    if name not in ("output.weight", "rope_freqs.weight")
} | blocks({"post_attention_norm.weight": (HIDDEN,), "post_ffw_norm.weight": (HIDDEN,)})
QWEN3_MOE = {
    name: shape for name, shape in LLAMA.items() if ".ffn_" not in name or "ffn_norm" in name
} | blocks(
    {
        "attn_q_norm.weight": (16,),
        "attn_k_norm.weight": (16,),
        "ffn_gate_inp.weight": (4, HIDDEN),
        "ffn_gate_exps.weight": (4, EXPERT, HIDDEN),
        "ffn_up_exps.weight": (4, EXPERT, HIDDEN),
        "ffn_down_exps.weight": (4, HIDDEN, EXPERT),
    }
)


@pytest.mark.parametrize(
    ("architecture", "shapes", "kind"),
    [
        ("llama", LLAMA, Types.F16),
        ("llama", LLAMA, Types.BF16),
        ("llama", LLAMA, Types.Q8_0),
        ("llama", LLAMA, Types.Q4_0),
        ("gpt2", GPT2, Types.F32),
        ("gpt2", GPT2, Types.Q8_0),
        ("gemma2", GEMMA2, Types.Q5_0),
        ("qwen3moe", QWEN3_MOE, Types.Q8_0),
    ],
)
def test_equal_to_transformers_load(
    tmp_path: Path, architecture: str, shapes: dict[str, tuple[int, ...]], kind: Any
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", architecture, shapes, kind)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    for _ in range(2):  # parsed, then from the cache
        checkpoint = open_checkpoint(str(path))
        parameters = dict(plain.named_parameters())
        assert {name for name in checkpoint.tensors if name in parameters} == set(parameters)
        for name, expected in parameters.items():
            assert torch.equal(checkpoint.read([name])[name], expected), name
        assert settings(checkpoint.config) == settings(plain.config)
    stored = sum(checkpoint.tensors[name].nbytes for name in parameters)
    assert checkpoint.bytes_read == stored
    digests = {checkpoint.block_digest(block) for block in range(BLOCKS)}
    assert len(digests) == BLOCKS
    assert len(checkpoint.block_tensors(Span(1, 2))) * BLOCKS == len(
        checkpoint.block_tensors(Span(0, BLOCKS))
    )


def test_a_folder_with_one_gguf_file_is_a_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama", LLAMA, Types.F16)
    assert open_checkpoint(str(tmp_path)).num_blocks == BLOCKS


def test_a_parameter_that_is_not_stored(tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in LLAMA.items() if name != "blk.1.attn_q.weight"}
    path = write_gguf(tmp_path / "tiny.gguf", "llama", shapes, Types.F16)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj"):
        open_checkpoint(str(path))


def test_architectures_that_transformers_cannot_load(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", "rwkv6", LLAMA, Types.F16)
    with pytest.raises(NotServedError, match="rwkv6"):
        open_checkpoint(str(path))


@pytest.mark.parametrize("kept", [0, 3, 20, 100, 0.1, 0.5, 0.99])
def test_damaged_files(tmp_path: Path, kept: float) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", "llama", LLAMA, Types.F16)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf") as caught:
        open_checkpoint(str(path))
    assert "\n" not in str(caught.value)


def test_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model at all, only words")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        open_checkpoint(str(tmp_path / "notes.txt"))
