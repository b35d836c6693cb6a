"""The config of a slice, and the check that its layers are the whole model's.

Some models decide by a layer's index what it is: its RoPE, its window, whether it has experts. A
slice's layers count from 0, so everything in the config that speaks of layers is shifted; what
this file does not know of is found by comparing the layers with those of the whole model.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from swarm.errors import NotServedError
from swarm.models.building import building_model
from swarm.models.layer_list import find_layers
from swarm.spans import Span

Module = TypeVar("Module", bound=nn.Module)

_COUNTS_FROM_START = ("first_k_dense_replace", "num_dense_layers", "num_hash_layers")
"""Settings that say how many of the first layers are special."""
_LAYER_LISTS = (
    "mlp_only_layers",
    "moe_layers",
    "full_attn_idxs",
    "attn_layers_idx",
    "attn_layer_indices",
)
"""Settings that list indices of layers."""
_OFFSETS = {"attn_layer_offset": "attn_layer_period", "expert_layer_offset": "expert_layer_period"}
"""Settings that say which layer of each period is special, and those that say how long that is."""
_INDICES = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx", "idx")
"""Attributes of a module that hold the index of its layer."""


def sliced_config(config: PretrainedConfig, span: Span) -> PretrainedConfig:
    """The config of a model that consists of the blocks of `span` only, without a vocabulary."""
    total = config.num_hidden_layers
    sliced = copy.deepcopy(config)
    changes: dict[str, Any] = {}
    for name, value in vars(config).items():
        if name in _COUNTS_FROM_START and isinstance(value, int):
            changes[name] = max(0, value - span.start)
        elif name in _LAYER_LISTS and isinstance(value, list | tuple):
            changes[name] = [index - span.start for index in value if index in span]
        elif name in _OFFSETS:
            changes[name] = (value - span.start) % getattr(config, _OFFSETS[name])
        elif "layer" in name and isinstance(value, list | tuple) and len(value) == total:
            changes[name] = value[span.start : span.end]
    changes |= {"num_hidden_layers": len(span), "vocab_size": 1}
    changes |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    if hasattr(config, "word_embed_proj_dim"):
        # OPT-350m projects its embeddings to the width of its blocks, and back: the client does.
        changes["word_embed_proj_dim"] = config.hidden_size
    for name, value in changes.items():
        setattr(sliced, name, value)
    return sliced


def model_of_layers(model: PreTrainedModel, count: int, span: Span) -> PreTrainedModel:
    """A model that has only layers `span` of the `count` layers of `model`, and shares the rest."""
    name, layers = find_layers(model, count)
    *path, leaf = name.split(".")
    found = _shallow(model)
    found.config = sliced_config(model.config, span)
    inside: nn.Module = found
    for step in path:
        inside._modules[step] = _shallow(inside.get_submodule(step))
        inside = inside.get_submodule(step)
        if hasattr(inside, "config"):
            inside.config = found.config
    inside._modules[leaf] = nn.ModuleList(list(layers)[span.start : span.end])
    return found


def _shallow(module: Module) -> Module:
    """A copy that has its own list of children, which are the same."""
    found = copy.copy(module)
    found._modules = dict(module._modules)
    return found


def check_layers(model: nn.Module, config: PretrainedConfig, span: Span) -> None:
    """Compare each layer of the slice with its original in the whole model, on no device.

    Raises `NotServedError` that says what differs: classes, shapes of parameters and buffers, or
    any number, text or truth value in a module but the index of its layer.
    """
    whole_config = copy.deepcopy(config)
    whole_config._attn_implementation = "eager"
    with building_model(), torch.device("meta"):
        whole = type(model)(whole_config)
    _, originals = find_layers(whole, config.num_hidden_layers)
    _, layers = find_layers(model, len(span))
    for index, layer in enumerate(layers):
        block = span.start + index
        difference = _difference(layer, originals[block], index, span, len(originals))
        if difference is not None:
            raise NotServedError(
                f"{type(model).__name__} cannot be cut at {span}: block {block} would not be what "
                f"it is in the whole model ({difference}); host it from block 0 on, or all blocks"
            )


def _difference(
    mine: nn.Module, original: nn.Module, index: int, span: Span, total: int
) -> str | None:
    block = span.start + index
    ours, theirs = dict(mine.named_modules()), dict(original.named_modules())
    if ours.keys() != theirs.keys():
        return f"modules {sorted(ours.keys() ^ theirs.keys())[:3]}"
    for name in ours:
        here, there = ours[name], theirs[name]
        if type(here) is not type(there):
            return f"{name} is {type(here).__name__} instead of {type(there).__name__}"
        if _shapes(here) != _shapes(there):
            return f"shapes of {name}"
        expected = {
            key: value[span.start : span.end]
            if "layer" in key and isinstance(value, tuple) and len(value) == total
            else value
            for key, value in _scalars(there)
        }
        found = {
            key: (block if key in _INDICES and value == index else value)
            for key, value in _scalars(here)
        }
        for key in expected.keys() | found.keys():
            if found.get(key) != expected.get(key):
                return f"{name}.{key} is {found.get(key)} instead of {expected.get(key)}"
    return None


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def _scalars(module: nn.Module) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if value is None or isinstance(value, bool | int | float | str):
            yield name, value
        elif isinstance(value, list | tuple) and all(
            isinstance(item, bool | int | float | str) for item in value
        ):
            yield name, tuple(value)


def most_positions(layers: Iterable[nn.Module]) -> int | None:
    """How many positions tables inside the layers have, as GPT-J's; None: there are none.

    A place beyond them must not be looked up: on a GPU that ends all that the process computes.
    """
    lengths = [
        len(table)
        for layer in layers
        for name, table in layer.named_buffers()
        if name.rpartition(".")[2] == "embed_positions"
    ]
    return min(lengths, default=None)
