"""Attention for a packed pass: many rows of many sessions in one `[1, tokens, hidden]` batch.

Registered with transformers under the name `swarm_packed`. Linear layers see all tokens of a pass
at once; here each row writes its K/V to the store and attends to its own slots only. Rows are told
apart by the `PackedPass` of the running thread, never by position ids.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from swarm.errors import NotServedError
from swarm.models.row_state import RowState

ATTENTION_NAME = "swarm_packed"


@dataclass(frozen=True, slots=True)
class PassRow:
    """One row's part of a pass: `count` new tokens for its slots `start .. start + count - 1`."""

    row: object
    """Whatever the K/V store uses to name a row."""
    start: int
    count: int


class KVPass(Protocol):
    """The K/V of the rows of one pass, in the order in which they were given."""

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store the pass's new K/V: `[heads, tokens, k_dim]` and `[heads, tokens, v_dim]`."""

    def read(self, layer: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All K/V of row `index` of the pass, new slots included: `[heads, start + count, dim]`.

        The tensors may be views of the store and are valid until its next pass.
        """


class KVStore(Protocol):
    """Where a slice keeps the K/V of all rows."""

    def begin(self, rows: Sequence[PassRow]) -> KVPass:
        """Make room for the new slots of `rows`. Raises `SwarmError` if there is none."""

    def state(self, row: Any) -> RowState:
        """What recurrent layers remember of a row, named as in `PassRow.row`."""


@dataclass(slots=True)
class PackedPass:
    """What the attention function needs to know of the running pass."""

    rows: Sequence[PassRow]
    kv: KVPass
    windows: dict[int, int | None] = field(default_factory=dict)
    """The sliding window of each layer that has attended so far; None: it sees all slots."""
    mask_windows: set[int] = field(default_factory=set)
    """Windows and chunks of the masks that the model asked for."""
    masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)
    """Additive masks by (index of the row, window), made once for all layers."""

    def mask(self, index: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """0 where a new token of row `index` may look, else -inf: `[count, start + count]`."""
        known = self.masks.get((index, window))
        if known is None:
            row = self.rows[index]
            length = row.start + row.count
            slots = torch.arange(length, device=like.device)
            mine = slots[row.start :, None]
            hidden = slots > mine
            if window is not None:
                hidden |= slots <= mine - window
            known = torch.zeros(row.count, length, dtype=like.dtype, device=like.device)
            known.masked_fill_(hidden, -torch.inf)
            self.masks[index, window] = known
        return known


class _Running(threading.local):
    current: PackedPass | None = None


_RUNNING = _Running()


class running_pass:  # noqa: N801 - reads as a statement: `with running_pass(...)`
    """Context in which the attention function of this thread works for `packed`."""

    def __init__(self, packed: PackedPass) -> None:
        self._packed = packed

    def __enter__(self) -> PackedPass:
        _RUNNING.current = self._packed
        return self._packed

    def __exit__(self, *exception: object) -> None:
        _RUNNING.current = None


# Arguments that decoder layers hand down and that do not change what attention computes here:
# the first are about positions, which were applied before; the others only when they are unset.
_WITHOUT_EFFECT = frozenset({"position_ids", "cache_position", "position_embeddings", "use_cache"})


def _refuse_unknown(arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        if name not in _WITHOUT_EFFECT and value is not None and value is not False:
            raise NotServedError(
                f"this model's attention takes {name!r}, which packed passes do not compute"
            )


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each row of the running pass over its own slots.

    `query` is `[1, heads, tokens, k_dim]`, `key` and `value` are `[1, kv_heads, tokens, dim]`; the
    answer is `[1, tokens, heads, v_dim]`. Tokens beyond the pass's rows are padding: they store
    nothing, and their answer repeats the last row's. Raises `NotServedError` for an argument
    whose meaning is not known here.
    """
    packed = _RUNNING.current
    if packed is None:
        raise NotServedError("packed attention runs only inside a slice's forward pass")
    if arguments:
        _refuse_unknown(arguments)
    if attention_mask is not None or dropout or is_causal is False:
        raise NotServedError("packed passes serve causal attention without masks and dropout only")
    layer: int = module.layer_idx  # type: ignore[assignment]
    if layer in packed.windows:
        raise NotServedError(f"layer {layer} attends twice in a pass; its K/V would be mixed up")
    packed.windows[layer] = sliding_window
    heads, kv_heads = query.shape[1], key.shape[1]
    group = heads // kv_heads
    packed.kv.write(layer, key[0], value[0])
    by_token = query[0].transpose(0, 1)
    answers: list[torch.Tensor] = []
    first = 0
    for index, row in enumerate(packed.rows):
        keys, values = packed.kv.read(layer, index)
        end = first + row.count
        if row.count == 1 and softcap is None and s_aux is None:
            if sliding_window is not None and keys.shape[1] > sliding_window:
                keys, values = keys[:, -sliding_window:], values[:, -sliding_window:]
            grouped = by_token[first].reshape(1, kv_heads, group, -1)
            answer = scaled_dot_product_attention(
                grouped, keys.unsqueeze(0), values.unsqueeze(0), scale=scaling
            )
            answers.append(answer.reshape(1, heads, -1))
        else:
            answer = _attend(
                query[:, :, first:end], keys, values, packed, index,
                scaling, sliding_window, softcap, s_aux,
            )  # fmt: skip
            answers.append(answer.transpose(0, 1))
        first = end
    if first < query.shape[2]:
        answers.append(answers[-1][-1:].expand(query.shape[2] - first, -1, -1))
    answer = answers[0] if len(answers) == 1 else torch.cat(answers)
    return answer.unsqueeze(0), None


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    packed: PackedPass,
    index: int,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One row's `[1, heads, count, k_dim]` queries over its slots: `[heads, count, v_dim]`."""
    row = packed.rows[index]
    whole = window is None or row.start + row.count <= window
    if softcap is None and sinks is None:
        plain = whole and row.start == 0
        return scaled_dot_product_attention(
            query,
            keys.unsqueeze(0),
            values.unsqueeze(0),
            attn_mask=None if plain else packed.mask(index, None if whole else window, query),
            is_causal=plain,
            scale=scaling,
            enable_gqa=query.shape[1] != keys.shape[0],
        )[0]
    kv_heads = keys.shape[0]
    heads, count = query.shape[1], query.shape[2]
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    grouped = query.reshape(kv_heads, -1, query.shape[3])
    scores = torch.bmm(grouped, keys.transpose(1, 2)).view(heads, count, -1) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if count > 1 or not whole:
        scores = scores + packed.mask(index, None if whole else window, query)
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(heads, 1, 1).expand(heads, count, 1)
        scores = torch.cat((scores, sink), -1)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype)
    weights = weights[..., : keys.shape[1]].reshape(kv_heads, -1, keys.shape[1])
    return torch.bmm(weights, values).view(heads, count, -1)


def _no_mask(
    *_arguments: Any, local_size: int | None = None, use_vmap: bool = False, **_named: Any
) -> None:
    """Packed attention makes its own masks, a row at a time; here the model asks for one."""
    if use_vmap:
        raise NotServedError("this model masks attention in a way of its own")
    if local_size is not None and _RUNNING.current is not None:
        _RUNNING.current.mask_windows.add(local_size)


AttentionInterface.register(ATTENTION_NAME, packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)
