"""Tiny models of many architectures, drawn so that a broken slice shows in the logits."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from swarm.models.building import building_model

LAYERS = 5
WINDOW = 8
"""Sliding windows and attention chunks."""
CONTEXT = 32
"""The original context of models whose positions may go beyond it."""
_SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2_SIZES = {
    "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_inner": 48, "n_positions": 192, "n_ctx": 192,
    "max_position_embeddings": None,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED_EXPERTS = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2,
    "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 3,
}  # fmt: skip
_LATENT = {
    "q_lora_rank": 12, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 6, "head_dim": 4, "num_key_value_heads": 4,
}  # fmt: skip
_MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}  # fmt: skip


def _pattern(period: str, **kinds: str) -> dict[str, Any]:
    """`layer_types` from a word with a letter for each layer."""
    return {"layer_types": [kinds[letter] for letter in period]}


_SLIDING = {"sliding_window": WINDOW} | _pattern("ssfss", s="sliding_attention", f="full_attention")
_LINEAR = _pattern("lllfl", l="linear_attention", f="full_attention")

ARCHITECTURES: dict[str, dict[str, Any]] = {
    # name of the architecture in transformers: what differs from _SIZES; None: is not set
    "llama": {},
    "llama4_text": {
        **_LOCAL_EXPERTS, "num_experts_per_tok": 1, "intermediate_size_mlp": 48,
        "attention_chunk_size": WINDOW, "no_rope_layers": [1, 1, 0, 1, 1], "moe_layers": [1, 3],
        "floor_scale": 4, "interleave_moe_layer_step": 2,
        **_pattern("ccfcc", c="chunked_attention", f="full_attention"),
    },
    "qwen2": {},
    "qwen2_moe": {
        **_EXPERTS, "shared_expert_intermediate_size": 16, "mlp_only_layers": [1, 2],
        "decoder_sparse_step": 1,
    },
    "qwen3": {},
    "qwen3_moe": _EXPERTS | {"mlp_only_layers": [0, 3]},
    "qwen3_next": {
        **_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 16, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    },
    "mistral": {"sliding_window": WINDOW},
    "mixtral": _LOCAL_EXPERTS | {"sliding_window": WINDOW},
    "gemma": {},
    "gemma2": _SLIDING | {"query_pre_attn_scalar": 8},
    "gemma3_text": _SLIDING | {"query_pre_attn_scalar": 8},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {
        "max_position_embeddings": 4 * CONTEXT, "original_max_position_embeddings": CONTEXT,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 4.0], "original_max_position_embeddings": CONTEXT,
        },
    },
    "phimoe": _LOCAL_EXPERTS | {"sliding_window": WINDOW},
    "falcon": {"alibi": False, "multi_query": True, "head_dim": None},
    "bloom": {"n_layer": LAYERS, "n_head": 4},
    "gpt2": _GPT2_SIZES,
    "gpt_neox": {"rotary_pct": 0.5},
    "gptj": _GPT2_SIZES | {"rotary_dim": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128},
    "deepseek_v2": _ROUTED_EXPERTS | _LATENT | {"topk_method": "greedy"},
    "deepseek_v3": _ROUTED_EXPERTS | _LATENT,
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "glm4_moe": _ROUTED_EXPERTS | {"partial_rotary_factor": 0.5},
    "cohere": {"logit_scale": 0.25, "use_qk_norm": True},
    "cohere2": _SLIDING | {"logit_scale": 0.25},
    "olmo2": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": _LOCAL_EXPERTS | _SLIDING,
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "granitemoe": _LOCAL_EXPERTS | {"residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "starcoder2": {"sliding_window": WINDOW},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": LAYERS, "max_seq_len": 192},
    "stablelm": {"use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0, 1]},
    "nemotron": {"partial_rotary_factor": 0.5},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64, "ssm_multipliers": [1.0] * 5},
    # beyond those that users ask for most
    "apertus": {},
    "arcee": {},
    "bamba": _MAMBA | {"attn_layer_indices": [2]},
    "codegen": _GPT2_SIZES | {"rotary_dim": 4},
    "dots1": _ROUTED_EXPERTS,
    "ernie4_5": {},
    "exaone4": _SLIDING,
    "gpt_bigcode": _GPT2_SIZES,
    "gpt_neo": {
        "num_layers": LAYERS, "num_heads": 4, "attention_types": [[["global", "local"], 2],
        [["global"], 1]], "window_size": WINDOW, "max_position_embeddings": 192,
    },
    "granitemoehybrid": {
        **_MAMBA, **_LOCAL_EXPERTS, "shared_intermediate_size": 16,
        **_pattern("mmamm", m="mamba", a="attention"),
    },
    "helium": {},
    "hunyuan_v1_dense": {},
    "jamba": {
        "mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 4, "attn_layer_period": 3,
        "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "lfm2": {"full_attn_idxs": [2], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False},
    "minimax": _LOCAL_EXPERTS | _LINEAR | {"block_size": 4},
    "olmo": {},
    "olmo3": _SLIDING,
    "persimmon": {"partial_rotary_factor": 0.5, "qk_layernorm": True},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": WINDOW},
    "seed_oss": {},
}  # fmt: skip


def draw(architecture: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model in float32 in which every stored number is random: nothing is 0 or 1 by habit."""
    settings = _SIZES | ARCHITECTURES[architecture] | changes
    settings = {name: value for name, value in settings.items() if value is not None}
    generator = torch.Generator().manual_seed(seed)
    with building_model():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(architecture, **settings), dtype=torch.float32
        )
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, tensor in model.state_dict().items():
            if name in parameters or (tensor.is_floating_point() and not tensor.any()):
                noise = torch.randn(tensor.shape, generator=generator)
                if name.endswith("A_log"):
                    # Slow decay: what is forgotten at once leaves sums near 0, and norms of those
                    # multiply rounding.
                    tensor.copy_(0.3 * noise - 3)
                elif tensor.ndim < 2:
                    tensor.add_(noise, alpha=0.3)
                else:
                    tensor.copy_(noise * tensor.shape[-1] ** -0.5)
    return model.eval()
