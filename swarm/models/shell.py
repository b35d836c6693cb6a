"""The client's part of a model: everything but its blocks, as the checkpoint's own class."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from swarm.models.checkpoint import Checkpoint
from swarm.models.download_bar import download_bar
from swarm.models.layer_list import find_layers
from swarm.models.loading import load_model
from swarm.models.remote_blocks import ATTENTION, RemoteBlocks
from swarm.models.weights_memory import weights_apart


def load_shell(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    make_remote: Callable[[PretrainedConfig], nn.Module],
) -> PreTrainedModel:
    """Load embeddings, norm, head and what else is outside the blocks; no block is read or made.

    The model is of a subclass of `<Architecture>ForCausalLM` with the same name. Its config is the
    checkpoint's (with all its layers), its generation config too. `make_remote(model.config)` is
    called once the weights are there; `RemoteBlocks` says with what the module that it returns is
    called, once a forward.

    Raises CheckpointError, ModelNotFoundError (a hub that breaks off), or NotServedError for a
    model whose blocks are not one list.
    """
    model_class = shell_class(checkpoint.model_class)
    with download_bar(checkpoint.name) as progress:
        checkpoint.fetch(checkpoint.shell_tensors(), progress)
    state_dict = {name: checkpoint.lazy(name) for name in checkpoint.shell_tensors()}
    with weights_apart():
        model = load_model(
            model_class,
            checkpoint.config,
            state_dict,
            dtype,
            name=checkpoint.name,
            generation_config=checkpoint.load_generation_config(),
        )
    # Some say that they do not (MPT), but servers do, and without it every token would be a prompt.
    model.config.use_cache = True
    if model.generation_config is not None:
        model.generation_config.use_cache = True
    # Only now: some architectures choose classes of attention by this name as they are built.
    model.config._attn_implementation = ATTENTION
    remote_blocks(model).remote = make_remote(model.config)
    return model


def shell_class(model_class: type[Any]) -> type[Any]:
    """A subclass whose instances have one `RemoteBlocks` where `model_class` has its blocks."""

    def __init__(self: Any, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        model_class.__init__(self, config, *args, **kwargs)
        _replace_blocks(self, config)

    namespace = {
        "__init__": __init__,
        "__module__": model_class.__module__,
        "__qualname__": model_class.__qualname__,
        "__doc__": model_class.__doc__,
        # Servers rewind recurrent state too, so nothing that transformers does is out of reach.
        "_is_stateful": False,
    }
    return type(model_class.__name__, (model_class,), namespace)


def remote_blocks(model: nn.Module) -> RemoteBlocks:
    """The module of a shell that stands for its blocks."""
    return next(module for module in model.modules() if isinstance(module, RemoteBlocks))


def _replace_blocks(model: nn.Module, config: PretrainedConfig) -> None:
    """Swap the blocks, which are still on the meta device, before any weight is loaded."""
    name, blocks = find_layers(model, config.num_hidden_layers)
    model.set_submodule(name, nn.ModuleList([RemoteBlocks(blocks[0])]))
