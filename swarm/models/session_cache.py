"""transformers' cache for a pass of one row, whose K/V lie in the store of all sessions.

Models whose attention does not go through the attention interface, or whose layers are recurrent,
are given what they know: a `Cache`. Its attention layers read and write the store; its recurrent
layers work on the row's own state.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from swarm.errors import NotServedError
from swarm.models.packed_attention import KVPass
from swarm.models.row_state import RowState

_STATE = frozenset(vars(LinearAttentionLayer()))
"""Attributes in which a recurrent layer of the cache keeps what it remembers."""


@dataclass(frozen=True)
class LayerKind:
    """What one layer of a model remembers of a row."""

    attends: bool
    """K/V of every slot."""
    recurrent: bool
    """A state of fixed size."""
    states: int = 1
    """How many of them."""


def layer_kinds(config: PretrainedConfig) -> tuple[LayerKind, ...]:
    """Of each layer, as transformers' own cache for `config` has it; `NotServedError`."""
    return tuple(_kind(layer) for layer in DynamicCache(config=config).layers)


def _kind(layer: Any) -> LayerKind:
    if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
        return LayerKind(attends=True, recurrent=False)
    if type(layer) is LinearAttentionLayer:
        return LayerKind(attends=False, recurrent=True, states=layer.number_of_states)
    if type(layer) in (
        LinearAttentionAndFullAttentionLayer,
        LinearAttentionAndSlidingWindowAttentionLayer,
    ):
        return LayerKind(attends=True, recurrent=True, states=layer.number_of_states)
    if type(layer) is DummyLayer:
        return LayerKind(attends=False, recurrent=False)
    raise NotServedError(
        f"the model keeps a {type(layer).__name__} for each row, which this version does not serve"
    )


class _Stored:
    """The part of a cache's layer that keeps K/V in the store: of all slots, also where the layer
    looks at a window of them only, which its mask says."""

    def attach(self, index: int, kv: KVPass, start: int) -> None:
        self._index, self._kv, self._length = index, kv, start

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._kv.write(self._index, key_states[0], value_states[0])
        self._length += key_states.shape[-2]
        keys, values = self._kv.read(self._index, 0)
        return keys.unsqueeze(0), values.unsqueeze(0)

    def get_seq_length(self) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length + query_length, 0


class _AttentionLayer(_Stored, DynamicLayer):  # type: ignore[misc]
    pass


class _HybridLayer(_Stored, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    pass


class SessionCache(DynamicCache):  # type: ignore[misc]
    """What a model knows of one row before a pass of it, and what it adds."""

    def __init__(self, kinds: Sequence[LayerKind], kv: KVPass, start: int, state: RowState) -> None:
        """`kv`: of a pass with this row alone, whose new tokens begin at slot `start`."""
        layers = [self._layer(index, kind, kv, start) for index, kind in enumerate(kinds)]
        for index, remembered in state.layers.items():
            vars(layers[index]).update(remembered)
        Cache.__init__(self, layers=layers)
        self._recurrent = [index for index, kind in enumerate(kinds) if kind.recurrent]
        self._start = start

    @staticmethod
    def _layer(index: int, kind: LayerKind, kv: KVPass, start: int) -> Any:
        if not kind.attends:
            return LinearAttentionLayer(kind.states) if kind.recurrent else DummyLayer()
        layer = _HybridLayer(kind.states) if kind.recurrent else _AttentionLayer()
        layer.attach(index, kv, start)
        return layer

    def remember(self, state: RowState) -> None:
        """Put what the recurrent layers that ran know now into `state`."""
        for index in self._recurrent:
            if any(self.layers[index].has_previous_state.values()):
                attributes = vars(self.layers[index])
                state.layers[index] = {name: attributes[name] for name in _STATE}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots before this pass; of a layer that has attended in it, with the new ones."""
        layer = self.layers[layer_idx]
        return layer.get_seq_length() if isinstance(layer, _Stored) else self._start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        layer = self.layers[layer_idx]
        if isinstance(layer, _Stored):
            return layer.get_mask_sizes(query_length)
        return self._start + query_length, 0

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        """Of all layers if none is named: the last recurrent one may be no part of the pass."""
        if layer_idx is None:
            return self._start > 0
        return bool(super().has_previous_state(layer_idx, state_idx))
