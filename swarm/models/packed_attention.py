"""Attention for a packed pass: many rows of many sessions in one `[1, tokens, hidden]` batch.

Registered with transformers under the name `swarm_packed`. Linear layers see all tokens of a pass
at once; here each row writes its K/V to the store and attends to its own slots only. Rows are told
apart by the `PackedPass` of the running thread, never by position ids.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from swarm.errors import NotServedError
from swarm.models.row_state import RowState
from swarm.models.varlen_attention import attend_ragged, fits

ATTENTION_NAME = "swarm_packed"


@dataclass(frozen=True, slots=True)
class PassRow:
    """One row's part of a pass: `count` new tokens for its slots `start .. start + count - 1`."""

    row: Any
    """Whatever the K/V store uses to name a row."""
    start: int
    count: int
    horizon: int = 0
    """The last position of all tokens that were run at once, of which these are a piece; 0: there
    are no others."""


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


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back the tokens of a layer look; what a model is given in place of a mask."""

    size: int | None = None
    """Slots, the token's own among them; None: all."""
    chunks: bool = False
    """The row is cut into chunks of `size`, and a token looks at its own chunk only."""

    def first(self, slot: int) -> int:
        """The first slot that the token at `slot` sees."""
        if self.size is None:
            return 0
        return slot // self.size * self.size if self.chunks else max(0, slot - self.size + 1)


_EVERYTHING = Reach()
WHOLE_MASK = torch.empty(1, 1, 0, 0)
"""For a model all of whose layers see everything: the mask that it is called with. transformers
takes one of four dimensions as made already, and spares itself the work of making one."""


@dataclass(slots=True)
class PackedPass:
    """What the attention function needs to know of the running pass."""

    rows: Sequence[PassRow]
    kv: KVPass
    attended: dict[int, Reach] = field(default_factory=dict)
    """Layers that have attended so far, and how far they looked."""
    masks: dict[tuple[int, Reach], torch.Tensor] = field(default_factory=dict)
    """Additive masks by index of the row and reach, made once for all layers."""

    @property
    def sees_everything(self) -> bool:
        """Whether all layers that have attended did."""
        return all(reach == _EVERYTHING for reach in self.attended.values())

    def mask(self, index: int, reach: Reach, like: torch.Tensor) -> torch.Tensor:
        """0 where a new token of row `index` may look, else -inf: `[count, start + count]`."""
        known = self.masks.get((index, reach))
        if known is None:
            row = self.rows[index]
            length = row.start + row.count
            slots = torch.arange(length, device=like.device)
            mine = slots[row.start :, None]
            hidden = slots > mine
            if reach.size is not None:
                first = mine // reach.size * reach.size if reach.chunks else mine - reach.size + 1
                hidden |= slots < first
            known = torch.zeros(row.count, length, dtype=like.dtype, device=like.device)
            known.masked_fill_(hidden, -torch.inf)
            self.masks[index, reach] = known
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
    attention_mask: Reach | torch.Tensor | None,
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
    answer is `[1, tokens, heads, v_dim]`. `attention_mask` is what `_reach` has given, or
    `WHOLE_MASK`. Tokens beyond the pass's rows are padding: they store nothing, and their answer
    repeats the last row's. Raises `NotServedError` for an argument whose meaning is not known here.
    """
    packed = _RUNNING.current
    if packed is None:
        raise NotServedError("packed attention runs only inside a slice's forward pass")
    if arguments:
        _refuse_unknown(arguments)
    if dropout or is_causal is False:
        raise NotServedError("packed passes serve causal attention without dropout only")
    reach = _agreed(attention_mask, sliding_window)
    layer: int = module.layer_idx  # type: ignore[assignment]
    if layer in packed.attended:
        raise NotServedError(f"layer {layer} attends twice in a pass; its K/V would be mixed up")
    packed.attended[layer] = reach
    heads, kv_heads = query.shape[1], key.shape[1]
    group = heads // kv_heads
    packed.kv.write(layer, key[0], value[0])
    by_token = query[0].transpose(0, 1)
    if softcap is None and s_aux is None and not reach.chunks and fits(query, value):
        return _pad(_ragged(by_token, packed, layer, reach, scaling), query.shape[2]), None
    answers: list[torch.Tensor] = []
    first = 0
    for index, row in enumerate(packed.rows):
        keys, values = packed.kv.read(layer, index)
        end = first + row.count
        if row.count == 1 and softcap is None and s_aux is None:
            if (seen := reach.first(row.start)) > 0:
                keys, values = keys[:, seen:], values[:, seen:]
            grouped = by_token[first].reshape(1, kv_heads, group, -1)
            answer = scaled_dot_product_attention(
                grouped, keys.unsqueeze(0), values.unsqueeze(0), scale=scaling
            )
            answers.append(answer.reshape(1, heads, -1))
        else:
            answer = _attend(
                query[:, :, first:end], keys, values, packed, index,
                scaling, reach, softcap, s_aux,
            )  # fmt: skip
            answers.append(answer.transpose(0, 1))
        first = end
    return _pad(answers[0] if len(answers) == 1 else torch.cat(answers), query.shape[2]), None


def _pad(answer: torch.Tensor, tokens: int) -> torch.Tensor:
    """`[tokens of rows, heads, dim]` to `[1, tokens, heads, dim]`."""
    missing = tokens - answer.shape[0]
    if missing:
        answer = torch.cat((answer, answer[-1:].expand(missing, -1, -1)))
    return answer.unsqueeze(0)


def _ragged(
    by_token: torch.Tensor, packed: PackedPass, layer: int, reach: Reach, scaling: float | None
) -> torch.Tensor:
    """All rows in one kernel; `by_token` is `[tokens, heads, dim]`."""
    counts = [row.count for row in packed.rows]
    stored = [packed.kv.read(layer, index) for index in range(len(counts))]
    keys, values = zip(*stored, strict=True)
    query = by_token[: sum(counts)].contiguous()
    return attend_ragged(query, keys, values, counts, reach.size, scaling)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    packed: PackedPass,
    index: int,
    scaling: float | None,
    reach: Reach,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One row's `[1, heads, count, k_dim]` queries over its slots: `[heads, count, v_dim]`."""
    row = packed.rows[index]
    whole = reach.first(row.start + row.count - 1) == 0
    if softcap is None and sinks is None:
        plain = whole and row.start == 0
        return scaled_dot_product_attention(
            query,
            keys.unsqueeze(0),
            values.unsqueeze(0),
            attn_mask=None if plain else packed.mask(index, _EVERYTHING if whole else reach, query),
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
        scores = scores + packed.mask(index, _EVERYTHING if whole else reach, query)
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(heads, 1, 1).expand(heads, count, 1)
        scores = torch.cat((scores, sink), -1)
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(values.dtype)
    weights = weights[..., : keys.shape[1]].reshape(kv_heads, -1, keys.shape[1])
    return torch.bmm(weights, values).view(heads, count, -1)


def _agreed(mask: Reach | torch.Tensor | None, window: int | None) -> Reach:
    """What a layer sees, of which it is told in two ways."""
    if mask is None or mask is WHOLE_MASK:
        return _EVERYTHING if window is None else Reach(window)
    if not isinstance(mask, Reach):
        raise NotServedError("this model changes masks in a way that packed passes do not know")
    if window is not None and mask != Reach(window):
        raise NotServedError(f"a layer with a window of {window} and a mask of {mask}")
    return mask


def _reach(
    *_arguments: Any,
    mask_function: Callable[..., torch.Tensor],
    local_size: int | None = None,
    use_vmap: bool = False,
    **_named: Any,
) -> Reach | None:
    """Packed attention makes its own masks, a row at a time; here the model asks for one.

    It hands the answer to the layers that it is for.
    """
    parts = set(_parts_of(mask_function))
    kinds = parts & {_CHUNK, _WINDOW}
    if use_vmap or parts - kinds - _PLAIN or len(kinds) != (local_size is not None):
        raise NotServedError("this model masks attention in a way of its own")
    return None if local_size is None else Reach(local_size, chunks=_CHUNK in kinds)


_WINDOW, _CHUNK = "sliding_window_overlay", "chunked_overlay"
_PLAIN = {"causal_mask_function", "packed_sequence_mask_function"}
"""What else transformers' masks are made of; sessions are kept apart here by other means."""


def _parts_of(mask_function: Any) -> Iterator[str]:
    """Names of the functions of which `mask_function` is the intersection."""
    if isinstance(mask_function, tuple):
        for part in mask_function:
            yield from _parts_of(part)
    elif callable(mask_function):
        name = mask_function.__qualname__.partition(".")[0]
        if name not in {"and_masks", "remap_positions_for_packed_sequence"}:
            yield name
            return
        for cell in mask_function.__closure__ or ():
            yield from _parts_of(cell.cell_contents)


AttentionInterface.register(ATTENTION_NAME, packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _reach)
