"""How large a model's blocks are and what they cost, from its config alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swarm.errors import UsageError

BITS_PER_WEIGHT = {
    "float32": 32.0,
    "bfloat16": 16.0,
    "float16": 16.0,
    "int8": 8.0 * 1.01,
    "fp8": 8.0 * 1.01,
    "int4": 4.25 * 1.01,
    "nf4": 4.25 * 1.01,
}
"""Stored bits of one weight with its scales; nf4: 64 weights share a scale, and 1 % is not
quantized (Sun et al., arXiv 2512.21884, section II)."""
VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one activation or cached value."""
_PLAIN_MLP = frozenset(
    {"bloom", "falcon", "gpt2", "gpt_neox", "gptj", "mpt", "nemotron", "opt", "persimmon", "phi"}
    | {"stablelm_epoch", "starcoder2"}
)
"""Model types whose feed-forward part is two matrices instead of three."""


@dataclass(frozen=True)
class ModelShape:
    """One decoder; everything counted per block is of its largest kind of block."""

    name: str
    num_blocks: int
    hidden_size: int
    attention_parameters: int
    """Of one block."""
    expert_parameters: int
    """Of one expert; a dense feed-forward part is one expert that is always active."""
    num_experts: int
    active_experts: int
    """For one token."""
    shared_parameters: int
    """Of experts that see every token, and of the router."""
    cached_values: int
    """Of one token in one block, as transformers caches them."""

    @property
    def block_parameters(self) -> int:
        """All of one block."""
        experts = self.num_experts * self.expert_parameters
        return self.attention_parameters + experts + self.shared_parameters

    def touched_experts(self, rows: float) -> float:
        """The expected number of experts that `rows` tokens wake, each drawing evenly."""
        if self.num_experts <= self.active_experts:
            return float(self.num_experts)
        idle: float = (1 - self.active_experts / self.num_experts) ** rows
        return self.num_experts * (1 - idle)

    def touched_parameters(self, rows: float) -> float:
        """Weights of one block that a pass of `rows` tokens reads."""
        experts = self.touched_experts(rows) * self.expert_parameters
        return self.attention_parameters + experts + self.shared_parameters

    @property
    def flops_per_token(self) -> float:
        """Of one token in one block, without attention over its context."""
        return 2.0 * self.touched_parameters(1)

    def block_bytes(self, dtype: str, quantization: str = "none") -> float:
        """Weights of one block in memory. Raises UsageError for a kind that is not known."""
        return self.block_parameters * bytes_per_weight(dtype, quantization)

    def cache_bytes_per_token(self, dtype: str) -> float:
        """K/V of one token in one block."""
        return float(self.cached_values * _of(VALUE_BYTES, dtype, "dtype"))

    def activation_bytes(self, dtype: str) -> float:
        """Of one token on the wire."""
        return float(self.hidden_size * _of(VALUE_BYTES, dtype, "dtype"))


def bytes_per_weight(dtype: str, quantization: str = "none") -> float:
    """Bytes of one stored weight with its scales."""
    kind = dtype if quantization == "none" else quantization
    return _of(BITS_PER_WEIGHT, kind, "dtype or quantization") / 8


def _of(table: Mapping[str, Any], name: str, what: str) -> float:
    if name not in table:
        raise UsageError(f"{name!r} is not a known {what}; take one of {', '.join(sorted(table))}")
    return float(table[name])


def shape_of(config: Mapping[str, Any], name: str = "") -> ModelShape:
    """The shape that a `config.json` (as a mapping) describes.

    Understands grouped queries (`num_key_value_heads`), other head sizes (`head_dim`), latent
    attention (`kv_lora_rank`: transformers caches the expanded heads), and experts.

    Raises UsageError when the config lacks what a decoder has.
    """
    config = {**config, **(config.get("text_config") or {})}
    name = name or str(config.get("_name_or_path") or config.get("model_type") or "the model")
    blocks = _number(config, name, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    hidden = _number(config, name, "hidden_size", "n_embd", "d_model")
    heads = _number(config, name, "num_attention_heads", "n_head", "n_heads")
    kv_heads = _number(config, name, "num_key_value_heads", "num_kv_heads", default=heads)
    head_dim = _number(config, name, "head_dim", default=hidden // heads)
    inner = _number(config, name, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    if config.get("kv_lora_rank"):
        attention, cached = _latent_attention(config, name, hidden, heads)
    else:
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        cached = 2 * kv_heads * head_dim
    experts = _number(
        config, name, "n_routed_experts", "num_local_experts", "num_experts", default=1
    )
    active = _number(config, name, "num_experts_per_tok", "experts_per_token", default=1)
    shared = 0
    if experts > 1:
        inner = _number(config, name, "moe_intermediate_size", default=inner)
        shared_inner = _number(config, name, "shared_expert_intermediate_size", default=0)
        shared_inner += inner * _number(config, name, "n_shared_experts", default=0)
        shared = 3 * hidden * shared_inner + hidden * experts
    matrices = 2 if config.get("model_type") in _PLAIN_MLP else 3
    return ModelShape(
        name=name,
        num_blocks=blocks,
        hidden_size=hidden,
        attention_parameters=attention,
        expert_parameters=matrices * hidden * inner,
        num_experts=experts,
        active_experts=min(active, experts),
        shared_parameters=shared,
        cached_values=cached,
    )


def _latent_attention(
    config: Mapping[str, Any], name: str, hidden: int, heads: int
) -> tuple[int, int]:
    """Parameters and cached values of DeepSeek's multi-head latent attention."""
    rank = _number(config, name, "kv_lora_rank")
    nope = _number(config, name, "qk_nope_head_dim")
    rope = _number(config, name, "qk_rope_head_dim")
    value = _number(config, name, "v_head_dim")
    query_rank = _number(config, name, "q_lora_rank", default=0)
    queries = heads * (nope + rope)
    query = (hidden + queries) * query_rank if query_rank else hidden * queries
    parameters = query + hidden * (rank + rope) + rank * heads * (nope + value)
    return parameters + heads * value * hidden, heads * (nope + rope + value)


def _number(config: Mapping[str, Any], name: str, *keys: str, default: int | None = None) -> int:
    for key in keys:
        value = config.get(key)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UsageError(
                    f"the config of {name} says {key} = {value!r}, which is not a count"
                )
            if value > 0 or default is not None:
                return value
            raise UsageError(f"the config of {name} says {key} = 0; it describes no decoder")
    if default is None:
        raise UsageError(f"the config of {name} has no {keys[0]}; it describes no decoder")
    return default
