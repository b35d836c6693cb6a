"""Bytes and parameters of blocks, against figures of the models' authors and of Parallax."""

import pytest
from inventories import GPT_OSS_120B

from swarm.errors import UsageError
from swarm.routing.hardware import Hardware, hardware_named, roofline
from swarm.routing.model_shape import bytes_per_weight, shape_of
from swarm.routing.performance import ServerSpeed

LLAMA_2_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
}
BLOOM = {"model_type": "bloom", "hidden_size": 14336, "n_head": 112, "n_layer": 70}
LATENT = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 64,
    "num_hidden_layers": 61,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
}


def test_blocks_of_a_dense_model_with_grouped_queries() -> None:
    shape = shape_of(LLAMA_2_70B)
    assert shape.block_parameters == 855_638_016  # 68.45 G in 80 blocks
    assert shape.cached_values == 2 * 8 * 128
    assert shape.cache_bytes_per_token("float16") == 4096
    assert shape.block_bytes("float16") == 2 * 855_638_016


def test_blooms_block_is_the_one_of_the_paper_but_for_biases_and_norms() -> None:
    shape = shape_of(BLOOM)
    assert shape.num_blocks == 70
    assert shape.block_parameters == pytest.approx(2_466_437_120, rel=1e-4)
    assert bytes_per_weight("bfloat16", "nf4") == pytest.approx(4.25 / 8 * 1.01)
    assert shape.block_bytes("bfloat16", "nf4") == pytest.approx(1.3234e9, rel=1e-3)
    # s_c of Sun et al.: 84 and 148 tokens of keys and values
    assert 84 * shape.cache_bytes_per_token("float16") == pytest.approx(0.004817e9, rel=1e-3)
    assert 148 * shape.cache_bytes_per_token("float16") == pytest.approx(0.008487e9, rel=1e-3)


def test_experts_of_gpt_oss_are_what_parallax_counts() -> None:
    shape = shape_of(GPT_OSS_120B)
    routers = shape.hidden_size * shape.num_experts
    assert shape.block_parameters - routers == 3_211_591_680
    assert [int(shape.touched_experts(rows)) for rows in (1, 4, 16)] == [4, 15, 50]
    assert shape.touched_experts(0) == 0.0


def test_latent_attention_is_cached_with_its_expanded_heads() -> None:
    shape = shape_of(LATENT)
    assert 2 * shape.cached_values == 65_536
    assert shape.cached_values == 64 * (192 + 64 + 256)
    assert shape.expert_parameters == 3 * 7168 * 2048


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "has no hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_attention_heads": "many"}, "not a count"),
        ({"num_attention_heads": -1}, "not a count"),
    ],
)
def test_a_config_that_is_no_decoder(change: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shape_of({**LLAMA_2_70B, **change}, "a model")


def test_unknown_names_are_told_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="a100-80gb"):
        hardware_named("abacus")
    with pytest.raises(UsageError, match="nf4"):
        bytes_per_weight("bfloat16", "int1")
    with pytest.raises(UsageError, match="memory_gb"):
        Hardware("broken", -1, 1, 1)
    with pytest.raises(UsageError, match="block_s"):
        ServerSpeed(0.0, -0.1)


def test_the_roofline_is_the_successors() -> None:
    # t_O = s_m / b: 0.4376 GB in int4-like storage over 2.039 GB/ms, and 2 P / f for a prompt.
    shape = shape_of(LLAMA_2_70B)
    speed = roofline(hardware_named("A100-80GB"), shape, "float16")
    assert speed.block_s == pytest.approx(2 * 855_638_016 / 2.039e12)
    assert speed.prefill_token_s == pytest.approx(2 * 855_638_016 / 312e12)
    assert speed.extra_row_s == 0.0
    # weights are read once until the rows' compute takes longer
    assert speed.decode_s(10, 100) == pytest.approx(speed.decode_s(10, 1))
    assert speed.decode_s(1, 400) - speed.pass_s == pytest.approx(400 * speed.row_s)
    sparse = roofline(hardware_named("a100-80gb"), shape_of(GPT_OSS_120B), "bfloat16")
    assert sparse.extra_row_s > 0.5 * sparse.block_s
