"""The one module that stands in a decoder's list of blocks when the blocks run elsewhere.

A decoder's own loop calls its blocks with whatever its architecture passes around: masks, rotary
tables, caches, in its own order and under its own names. `RemoteBlocks` reduces that to what has to
travel and calls `remote`, a module that the client provides:

    remote(
        hidden_states,    # [batch, tokens, hidden], after embeddings and all that precedes block 0
        attention_mask=,  # [batch, cached + tokens] bool, False for padding; or None
        position_ids=,    # [batch, tokens] int64, always there
        past_key_values=, # the Cache of this forward, or None without one
        use_cache=,       # bool
    ) -> hidden_states    # [batch, tokens, hidden], what the last block puts out, before the norm

`attention_mask` is the caller's own two-dimensional mask and None when the caller gave none. It
arrives here because the decoder's attention implementation is `ATTENTION`, whose mask function
hands it through instead of building a four-dimensional one.
"""

import ast
import inspect
import textwrap
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface

from swarm.errors import NotServedError

ATTENTION = "swarm_remote"
"""Name of the attention implementation of a model whose blocks run elsewhere."""

_CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")
_RECOMPUTED = {
    "hidden_states",
    "attention_mask",
    "position_ids",
    "use_cache",
    "mamba_attention_mask",
    "alibi",
    "position_bias",
    "position_embeddings",
    "position_embeddings_global",
    "position_embeddings_local",
    "cache_position",
    "num_items_in_batch",
    *_CACHE_NAMES,
}
"""Arguments that either travel or that a server computes again from those that do."""


_ALWAYS_MASKS = frozenset({"mpt"})
"""Architectures whose decoder works on its mask also when there is no padding."""


def _padding_mask(
    *,
    batch_size: int,
    kv_length: int,
    config: PretrainedConfig,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor | None:
    if attention_mask is None and config.model_type in _ALWAYS_MASKS:
        return torch.ones(batch_size, kv_length, dtype=torch.bool)
    return attention_mask


def _no_attention(*_: Any, **__: Any) -> None:
    raise NotServedError(
        "this model's blocks run in the swarm; its attention cannot be computed here"
    )


AttentionMaskInterface.register(ATTENTION, _padding_mask)
AttentionInterface.register(ATTENTION, _no_attention)


class RemoteBlocks(nn.Module):
    """Called by the decoder as if it were its only block; has no parameters of its own.

    Raises NotServedError for arguments that neither travel nor can be computed by a server: masks
    of four dimensions, attentions, packed sequences, inputs of single layers.
    """

    def __init__(self, first_block: nn.Module) -> None:
        super().__init__()
        self._signature = inspect.signature(first_block.forward)
        self._returned = returned_values(type(first_block))
        for name, value in vars(first_block).items():
            if isinstance(value, str | int | float) and not name.startswith("_"):
                self.__dict__.setdefault(name, value)  # decoders read some, such as attention_type
        self._take_buffers(first_block)
        self.remote: nn.Module | None = None

    def _take_buffers(self, first_block: nn.Module) -> None:
        """Decoders may set, when they are loaded, what their blocks hold beside stored tensors."""
        for path, module in first_block.named_modules():
            for name in module._non_persistent_buffers_set & module._buffers.keys():
                holder: nn.Module = self
                for step in filter(None, path.split(".")):
                    if step not in holder._modules:
                        holder.add_module(step, nn.Module())
                    holder = holder.get_submodule(step)
                holder.register_buffer(name, module._buffers[name], persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = self._signature.bind(*args, **kwargs).arguments
        for collected in ("kwargs", "flash_attn_kwargs"):
            given.update(given.pop(collected, {}))
        _refuse_others(given)
        hidden = given["hidden_states"] if "hidden_states" in given else args[0]
        cache = next((given[name] for name in _CACHE_NAMES if given.get(name) is not None), None)
        mask = given.get("attention_mask")
        if mask is not None and mask.ndim != 2:
            raise NotServedError(
                "attention masks of four dimensions are not served; give a mask of [batch, tokens]"
            )
        if self.remote is None:
            raise RuntimeError("the model is not connected to anything that runs its blocks")
        hidden = self.remote(
            hidden,
            attention_mask=mask,
            position_ids=_positions(given.get("position_ids"), mask, cache, hidden),
            past_key_values=cache,
            use_cache=bool(given.get("use_cache", cache is not None)),
        )
        if self._returned is None:
            return hidden
        return (hidden, *[None] * (self._returned - 1))


def returned_values(block_class: type[nn.Module]) -> int | None:
    """Length of the tuple that a block returns, or None if it returns the hidden states alone.

    Read from the source, because annotations are wrong for several architectures and calling a
    block would need its weights. Raises NotServedError if the source does not say.
    """
    function = inspect.unwrap(block_class.forward)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError) as error:
        raise NotServedError(f"{block_class.__name__} has no source to read") from error
    tuples = {
        target.id: len(node.value.elts)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    lengths: set[int | None] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Return):
            if isinstance(node.value, ast.Tuple):
                lengths.add(len(node.value.elts))
            elif isinstance(node.value, ast.Name):
                lengths.add(tuples.get(node.value.id))
            else:
                lengths.add(None)
    if len(lengths) != 1:
        raise NotServedError(f"{block_class.__name__} returns now this, now that; it is not served")
    return lengths.pop()


def _refuse_others(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if name in _RECOMPUTED or value is None or value is False:
            continue
        raise NotServedError(
            f"{name} cannot be sent through the swarm; leave it out, or run the model locally"
        )


def _positions(
    position_ids: torch.Tensor | None,
    mask: torch.Tensor | None,
    cache: Any,
    hidden: torch.Tensor,
) -> torch.Tensor:
    """`[batch, tokens]`; architectures that pass none count the tokens that are not padding."""
    batch, tokens = hidden.shape[:2]
    if position_ids is None:
        if mask is not None:
            counted: torch.Tensor = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)
            return counted[:, -tokens:]
        start = 0 if cache is None else int(cache.get_seq_length())
        position_ids = torch.arange(start, start + tokens, device=hidden.device)[None]
    if position_ids.ndim != 2:
        raise NotServedError("positions of more than one axis are not served")
    return position_ids.expand(batch, tokens)
