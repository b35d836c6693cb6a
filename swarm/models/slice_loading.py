"""Loading the layers of a span, and nothing else, into a model of the checkpoint's own class."""

import logging
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from swarm.errors import CheckpointError, NotServedError
from swarm.models.block_names import find_block_prefix
from swarm.models.building import building_model
from swarm.models.layer_list import find_layers
from swarm.models.packed_attention import ATTENTION_NAME
from swarm.models.quantization import Quantization, keep_odd_layers_plain, loading_options
from swarm.models.slice_config import check_layers, sliced_config
from swarm.spans import Span

logger = logging.getLogger("swarm.models.slice")

Progress = Callable[[int, int], None]
"""`progress(tensors read, tensors in all)`; may be called from a loader's thread."""

_OUTSIDE = re.compile(
    r"(.*\.)?(norm|final_layer_?norm|ln_f|norm_f|final_norm|embed_tokens|embed_in|wte|wpe"
    r"|embed_positions|word_embeddings|word_embeddings_layernorm|embeddings|embedding_norm"
    r"|embed_layer_norm)"
)
"""Parts before the first layer and behind the last one: they belong to the client."""


def load_model(
    config: PretrainedConfig,
    tensors: Mapping[str, Any],
    span: Span,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
    quantization: Quantization = "none",
) -> PreTrainedModel:
    """A base model that consists of the blocks of `span`; its embeddings and norm are empty.

    `tensors` are the span's, renumbered from 0 and read by `[...]`, one after the other; they
    go through transformers' own conversion. Raises `CheckpointError` or `NotServedError`.
    """
    model_class = _base_class(config)
    options = loading_options(quantization, dtype)

    def load(attention: str | None) -> tuple[PreTrainedModel, dict[str, Any]]:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = model_class.from_pretrained(
            None,
            config=sliced_config(config, span),
            state_dict=_state(model_class, tensors, len(span), progress),
            dtype=dtype,
            device_map=None if device.type == "cpu" else {"": device},
            attn_implementation=attention,
            output_loading_info=True,
            **options,
        )
        return loaded

    with building_model():
        try:
            try:
                model, report = load(ATTENTION_NAME)
            except KeyError as error:
                if error.args != (ATTENTION_NAME,):
                    raise
                # It chooses classes of its own by this name, before any tensor is read. None: what
                # transformers takes by itself, which need not be the same (Falcon with ALiBi).
                model, report = load(None)
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"blocks {span} cannot be loaded as {model_class.__name__}: {error}"
            ) from error
    layers_name, _ = find_layers(model, len(span))
    _check_report(report, layers_name, span)
    check_layers(model if quantization == "none" else _unquantized(model), config, span)
    _drop_outside(model, layers_name)
    keep_odd_layers_plain(model)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def _unquantized(model: PreTrainedModel) -> PreTrainedModel:
    """The same on no device, before its linear layers were replaced."""
    with building_model(), torch.device("meta"):
        return type(model)(model.config)


def _base_class(config: PretrainedConfig) -> type[Any]:
    found = MODEL_MAPPING.get(type(config), None)
    if found is None:
        raise NotServedError(f"transformers has no plain decoder for {config.model_type}")
    model_class: type[Any] = found[0] if isinstance(found, tuple) else found
    return model_class


def _state(
    model_class: type[Any], tensors: Mapping[str, Any], count: int, progress: Progress | None
) -> dict[str, Any]:
    """Under the names of a text model of its own, also if they come out of a larger one."""
    prefix = find_block_prefix(tensors, count)
    own = _own_prefix(prefix, model_class.base_model_prefix)
    seen = None if progress is None else _Watch(progress, len(tensors))
    return {
        own + name.removeprefix(prefix): tensor if seen is None else _Watched(tensor, seen)
        for name, tensor in tensors.items()
    }


def _own_prefix(prefix: str, base: str) -> str:
    """`model.layers` for `layers`, `language_model.model.layers`, `model.language_model.layers`."""
    parts = [part for part in prefix.split(".") if part not in {"language_model", "text_model"}]
    inner = parts[parts.index(base) + 1 :] if base in parts else parts
    return ".".join([base, *inner])


class _Watch:
    """Counts the tensors that were read; loaders read from several threads."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total
        self._lock = threading.Lock()
        self._done = 0

    def count(self) -> None:
        with self._lock:
            self._done += 1
            self._progress(self._done, self._total)


class _Watched:
    """A tensor that is read by `[...]`, and counted then."""

    def __init__(self, tensor: Any, watch: _Watch) -> None:
        self._tensor, self._watch = tensor, watch
        self.shape = tensor.shape

    def __getitem__(self, everything: Any) -> torch.Tensor:
        tensor: torch.Tensor = self._tensor[everything]
        self._watch.count()
        return tensor


def _check_report(report: Mapping[str, Any], layers_name: str, span: Span) -> None:
    for name in sorted(report["missing_keys"]):
        if name.startswith(layers_name + "."):
            raise CheckpointError(
                f"the checkpoint has no tensor for {name} of blocks {span} (numbered from 0)"
            )
        if not _OUTSIDE.fullmatch(name.rpartition(".")[0]):
            raise NotServedError(
                f"the model has {name} outside its blocks and needs it inside; such models are "
                "not served"
            )
    if report["unexpected_keys"]:
        logger.warning(
            "blocks %s: the model's class does not use %s", span, sorted(report["unexpected_keys"])
        )


def _drop_outside(model: nn.Module, layers_name: str) -> None:
    """Free what stands before and behind the layers."""
    for name in [name for name, _ in model.named_modules()]:
        if name and not name.startswith(layers_name) and _OUTSIDE.fullmatch(name):
            parent, _, attribute = name.rpartition(".")
            is_table = isinstance(model.get_submodule(name), nn.Embedding)
            empty = _NoEmbedding() if is_table else nn.Identity()
            setattr(model.get_submodule(parent), attribute, empty)


class _NoEmbedding(nn.Module):
    """Stands for a table of positions or the like, which the client has added already."""

    def forward(self, *_arguments: Any, **_named: Any) -> torch.Tensor:
        return torch.zeros(())
