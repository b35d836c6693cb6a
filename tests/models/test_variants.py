"""Architectures as some of their models are: other settings than those of `architectures.py`."""

from pathlib import Path
from typing import Any

import pytest
from compared_slices import TOLERANCE, examine

_ROPE = {"rope_theta": 10000.0}
_YARN = {**_ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_LLAMA3 = {
    **_ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("falcon", {"alibi": True}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"parallel_attn": False, "bias": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": _YARN}),
    ("llama", {"rope_parameters": _LLAMA3}),
    ("llama", {"rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 2.0}}),
    ("llama", {"rope_parameters": {**_ROPE, "rope_type": "dynamic", "factor": 2.0}}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    ("mistral", {"sliding_window": None}),
    ("opt", {"do_layer_norm_before": False}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    ("gpt2", {"reorder_and_upcast_attn": True, "scale_attn_weights": False}),
    ("gpt_bigcode", {"multi_query": False}),
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("bloom", {"n_head": 6, "hidden_size": 48}),
    ("deepseek_v2", {"q_lora_rank": None}),
    ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}),
    ("olmo", {"clip_qkv": 0.5}),
    ("phi", {"qk_layernorm": True}),
    ("cohere", {"use_qk_norm": False}),
    ("starcoder2", {"use_bias": False, "sliding_window": None}),
    ("mpt", {"n_heads": 6, "d_model": 48, "hidden_size": 48}),
]


def test_attention_is_what_transformers_takes_by_itself(tmp_path: Path) -> None:
    """Falcon's two kinds of it differ where it has ALiBi."""
    test_they_are_exact_too("falcon", {"alibi": True, "multi_query": False}, tmp_path)


def test_what_projects_the_embeddings_stays_with_the_client(tmp_path: Path) -> None:
    """As in OPT-350m, whose norms come behind attention and MLP, too."""
    settings = {"do_layer_norm_before": False, "word_embed_proj_dim": 16}
    test_they_are_exact_too("opt", settings, tmp_path)


@pytest.mark.matrix
@pytest.mark.parametrize(("architecture", "settings"), VARIANTS)
def test_they_are_exact_too(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    result = examine(architecture, tmp_path, **settings)
    assert result.differences is not None, result.refused
    assert max(result.differences.values()) <= TOLERANCE, result.differences
