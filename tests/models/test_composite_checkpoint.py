"""The text decoder of models of text and images is served as a model of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_slices import TOLERANCE, WAYS, Chain, logits_of, prompts_without_ties
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from swarm.errors import NotServedError
from swarm.models.building import building_model
from swarm.models.checkpoint import open_checkpoint
from swarm.models.shell import load_shell
from swarm.models.slice import BlockSlice
from swarm.spans import Span

TEXT: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IMAGES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "num_channels": 3,
}  # fmt: skip
COMPOSITES: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": TEXT | {"query_pre_attn_scalar": 8, "layer_types": [
            "sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]},
        "vision_config": IMAGES | {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4,
    },
    "llama4": {
        "text_config": TEXT | {
            "intermediate_size_mlp": 48, "num_local_experts": 2, "num_experts_per_tok": 1,
            "attention_chunk_size": 8, "no_rope_layers": [1, 1, 0, 1], "moe_layers": [1, 3],
        },
        "vision_config": IMAGES | {
            "projector_input_dim": 16, "projector_output_dim": 16, "vision_output_dim": 16,
        },
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral"},
        "vision_config": IMAGES | {"model_type": "pixtral", "head_dim": 8}, "image_token_index": 3,
        "tie_word_embeddings": False,
    },
    "llava": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": IMAGES | {"model_type": "clip_vision_model"}, "image_token_index": 3,
    },
    "qwen2_vl": {"text_config": TEXT, "vision_config": {"depth": 2, "embed_dim": 16}},
}  # fmt: skip


def draw_composite(kind: str) -> PreTrainedModel:
    with building_model():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(
            AutoConfig.for_model(kind, **COMPOSITES[kind]), dtype=torch.float32
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    with building_model():
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["gemma3", "llama4", "mistral3", "llava"])
def test_the_text_part_is_served_exactly(kind: str, tmp_path: Path) -> None:
    model = draw_composite(kind)
    checkpoint = open_checkpoint(str(save(model, tmp_path)))
    assert checkpoint.num_blocks == 4
    ids = prompts_without_ties(model).clamp(min=4)
    expected = logits_of(model, ids)
    chain = Chain([BlockSlice.load(checkpoint, span) for span in (Span(0, 1), Span(1, 4))])
    shell = load_shell(checkpoint, torch.float32, lambda _: chain)
    for name, way in WAYS.items():
        chain.way = way
        difference = (logits_of(shell, ids) - expected).abs().max() / expected.std()
        assert float(difference) <= TOLERANCE, name
    names = [*checkpoint.shell_tensors(), *checkpoint.block_tensors(Span(0, 4)).values()]
    assert checkpoint.bytes_read == sum(checkpoint.tensors[name].nbytes for name in names)
    assert not any("vision" in name or "projector" in name for name in checkpoint.tensors)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_it_is_the_same_model_however_it_was_saved(prefix: str, tmp_path: Path) -> None:
    """As one of text alone, and under the names of older and newer programs."""
    model = draw_composite("mistral3")
    whole = open_checkpoint(str(save(model, tmp_path / "whole")))
    text_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(model.config.text_config)]
    with building_model():
        text = text_class(model.config.text_config)
    text.model.load_state_dict(model.model.language_model.state_dict())
    text.lm_head.load_state_dict(model.lm_head.state_dict())
    alone = open_checkpoint(str(save(text, tmp_path / "text")))
    assert alone.identity == whole.identity
    tensors = load_file(tmp_path / "text" / "model.safetensors")
    head = "language_model.lm_head." if prefix.startswith("lang") else "lm_head."
    renamed = {
        name.replace("lm_head.", head, 1)
        if name.startswith("lm_head.")
        else prefix + name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, tmp_path / "whole" / "model.safetensors")
    again = open_checkpoint(str(tmp_path / "whole"))
    assert again.identity == whole.identity
    assert again.tensors.keys() == alone.tensors.keys()


def test_what_cannot_be_served_as_text_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    config = AutoConfig.for_model("qwen2_vl", **COMPOSITES["qwen2_vl"])
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(
        NotServedError, match="qwen2_vl_text is not a causal language model"
    ) as caught:
        open_checkpoint(str(tmp_path))
    assert "\n" not in str(caught.value)
