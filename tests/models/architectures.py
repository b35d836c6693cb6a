"""Tiny models of many architectures, drawn so that a broken slice shows in the logits, and how
slices of them are compared with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from swarm.errors import NotServedError
from swarm.models.building import building_model
from swarm.models.checkpoint import open_checkpoint
from swarm.models.layer_list import find_layers
from swarm.models.packed_attention import PassRow
from swarm.models.shell import load_shell
from swarm.models.slice import BlockSlice
from swarm.server.kv_cache import PagedCache
from swarm.spans import SessionId, Span

LAYERS = 5
WINDOW = 8
"""Sliding windows and attention chunks."""
CONTEXT = 32
"""The original context of models whose positions may go beyond it."""
TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the logits' standard deviation."""
LEAST_GAP = 2e-5
"""Between the scores of the last expert that is chosen and of the next one."""

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


def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """`[rows, tokens, vocabulary]`, by the model's own plain attention and without a cache."""
    with torch.inference_mode():
        found: torch.Tensor = model(ids, use_cache=False).logits
    return found


class _Choices(TorchFunctionMode):
    """Watches every `topk`: how much less than the last one chosen the next one was."""

    least = float("inf")

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.topk, torch.Tensor.topk):
            scores, chosen = args[0], kwargs["k"] if kwargs and "k" in kwargs else args[1]
            if chosen < scores.shape[-1]:
                ordered = scores.detach().sort(-1, descending=True).values
                gaps = ordered[..., chosen - 1] - ordered[..., chosen]
                self.least = min(self.least, float(gaps.nan_to_num(torch.inf).min()))
        return func(*args, **(kwargs or {}))


def prompts_without_ties(model: PreTrainedModel) -> torch.Tensor:
    """`[2, LENGTH]` random ids with which no token's choice of experts hangs on rounding: for those
    there is no right answer."""
    for seed in range(1, 50):
        ids = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(seed))
        with _Choices() as choices:
            logits_of(model, ids)
        if choices.least > LEAST_GAP:
            return ids
    raise AssertionError("all prompts have ties")


def least_effect(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """The least that dropping a block, or swapping it with the next, changes in the logits, in
    their standard deviations. Blocks that cannot stand elsewhere at all count as changed."""
    whole = logits_of(model, ids)
    name, layers = find_layers(model, model.config.num_hidden_layers)
    effects = []
    for broken in _broken(list(range(len(layers)))):
        model.set_submodule(name, nn.ModuleList([layers[index] for index in broken]))
        try:
            effects.append(float((logits_of(model, ids) - whole).abs().max() / whole.std()))
        except (RuntimeError, IndexError, KeyError, ValueError, AttributeError, TypeError):
            continue
    model.set_submodule(name, layers)
    return min(effects)


def _broken(whole: list[int]) -> list[list[int]]:
    swapped = [
        [*whole[:index], whole[index + 1], whole[index], *whole[index + 2 :]]
        for index in range(len(whole) - 1)
    ]
    return [[other for other in whole if other != index] for index in whole] + swapped


class Chain(nn.Module):
    """Slices one behind the other, as the blocks of a client's shell: each row is a session.

    `way` feeds the sessions: it calls `grow(counts)`, `stray(counts)` (tokens that nobody asked
    for) and `cut(lengths)` until all tokens have passed.
    """

    def __init__(self, slices: Sequence[BlockSlice]) -> None:
        super().__init__()
        self.slices = slices
        self.way: Callable[[Chain], None] = lambda chain: chain.grow(chain.left())

    def forward(
        self, hidden: torch.Tensor, *, position_ids: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        self._hidden, self._positions = hidden, position_ids
        self._answers = torch.full_like(hidden, torch.nan)
        self._names = [SessionId(bytes([row]) * 16) for row in range(len(hidden))]
        self._held = [0] * len(hidden)
        self._caches = []
        for each in self.slices:
            cache = PagedCache(each.kv_shapes, 1024, row_bytes=each.row_bytes, page_tokens=8)
            for name in self._names:
                cache.reserve(name, 1, hidden.shape[1])
            self._caches.append(cache)
        with torch.inference_mode():
            self.way(self)
        for cache in self._caches:
            cache.validate()
        return self._answers

    def left(self) -> list[int]:
        return [self._hidden.shape[1] - held for held in self._held]

    def grow(self, counts: Sequence[int]) -> None:
        """The next tokens of each session, in one pass."""
        spans = list(zip(self._held, counts, strict=True))
        rows = [
            self._hidden[row, start : start + count] for row, (start, count) in enumerate(spans)
        ]
        answers = torch.split(self._run(torch.cat(rows), counts), list(counts))
        for row, (start, count) in enumerate(spans):
            self._answers[row, start : start + count] = answers[row]

    def stray(self, counts: Sequence[int]) -> None:
        """Other tokens than those that are asked for."""
        self._run(torch.randn(sum(counts), self._hidden.shape[-1]), counts)

    def cut(self, lengths: Sequence[int]) -> None:
        for cache in self._caches:
            for name, length in zip(self._names, lengths, strict=True):
                cache.apply(name, None, [length])
        self._held = list(lengths)

    def _run(self, hidden: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        places = [
            self._positions[row, held : held + count]
            for row, (held, count) in enumerate(zip(self._held, counts, strict=True))
        ]
        for each, cache in zip(self.slices, self._caches, strict=True):
            rows = [
                PassRow(cache.row(name, 0), held, count, horizon=LENGTH - 1)
                for name, held, count in zip(self._names, self._held, counts, strict=True)
                if count
            ]
            hidden = each.forward(hidden, torch.cat(places), rows, cache)
        self._held = [held + count for held, count in zip(self._held, counts, strict=True)]
        return hidden


def _prefill(chain: Chain) -> None:
    chain.grow(chain.left())


def _chunked_prefill(chain: Chain) -> None:
    for counts in [(20, 1), (1, 30), (13, 2)]:
        chain.grow(counts)
    chain.grow(chain.left())


def _decode(chain: Chain) -> None:
    chain.grow((35, 37))
    while all(chain.left()):
        chain.grow((1, 1))
    chain.grow(chain.left())


def _rollback(chain: Chain) -> None:
    chain.grow((36, 33))
    chain.stray((4, 1))
    chain.cut((36, 33))
    for _ in range(3):
        chain.grow((1, 1))
    chain.stray((1, 3))
    chain.cut((35, 34))
    chain.grow((2, 5))
    chain.grow(chain.left())


WAYS: dict[str, Callable[[Chain], None]] = {
    "prefill": _prefill,
    "chunked prefill": _chunked_prefill,
    "cached decode": _decode,
    "rollback": _rollback,
}
LENGTH = 44
"""Tokens of each of the two sessions: more than windows and original contexts."""


@dataclass(frozen=True)
class Examined:
    """What a comparison has found out about an architecture."""

    architecture: str
    refused: str | None = None
    """Why it is not served."""
    packs: bool = False
    rewinds: str = ""
    alone_because: str | None = None
    differences: dict[str, float] | None = None
    """Largest of the logits, in their standard deviations, by way."""
    least_effect: float = 0.0


def examine(
    architecture: str, folder: Path, cuts: Sequence[int] = (2,), **changes: Any
) -> Examined:
    """Save a model, load slices of it that are cut at `cuts`, and compare them with it."""
    model = draw(architecture, **changes)
    ids = prompts_without_ties(model)
    expected = logits_of(model, ids)
    effect = least_effect(model, ids)
    with building_model():
        model.save_pretrained(folder)
    checkpoint = open_checkpoint(str(folder))
    edges = [0, *cuts, checkpoint.num_blocks]
    spans = [Span(start, end) for start, end in pairwise(edges)]
    try:
        slices = [BlockSlice.load(checkpoint, span) for span in spans]
        chain = Chain(slices)
        shell = load_shell(checkpoint, torch.float32, lambda _: chain)
    except NotServedError as refusal:
        return Examined(architecture, refused=str(refusal), least_effect=effect)
    differences = {}
    for name, way in WAYS.items():
        chain.way = way
        difference = (logits_of(shell, ids) - expected).abs().max() / expected.std()
        differences[name] = float(difference)
    return Examined(
        architecture,
        packs=all(each.packs_sessions for each in slices),
        rewinds=" ".join(sorted({each.rewinds for each in slices})),
        alone_because=next((each.alone_because for each in slices if each.alone_because), None),
        differences=differences,
        least_effect=effect,
    )
