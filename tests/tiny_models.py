"""Tiny random models of many architectures, saved as safetensors folders."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_WINDOW = {"sliding_window": 8, "head_dim": 8}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": SMALL_WINDOW | {"query_pre_attn_scalar": 8},
    "gemma3_text": SMALL_WINDOW | {"query_pre_attn_scalar": 8},
    "gpt2": {"n_positions": 128, "n_embd": 32, "n_layer": 4, "n_head": 4},
    "gpt_neox": {"rotary_pct": 0.5},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "head_dim": 8,
    },
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 4, "n_head": 4},
    "cohere": {"logit_scale": 0.25},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
}


def save_tiny(
    architecture: str, folder: Path, *, seed: int = 0, blocks: int = 4, **save: Any
) -> PreTrainedModel:
    """Make a model with random weights that matter (no ones and zeros), save and return it."""
    torch.manual_seed(seed)
    settings = SIZES | ARCHITECTURES[architecture] | {"num_hidden_layers": blocks}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, **save)
    return model
