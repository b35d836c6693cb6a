"""Passes of one session each, for models whose sessions cannot share them."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from swarm.models.building import building_model
from swarm.models.packed_attention import ATTENTION_NAME, KVStore, PassRow
from swarm.models.row_state import RowState
from swarm.models.session_cache import LayerKind, SessionCache

logger = logging.getLogger("swarm.models.slice")

CATCH_UP_TOKENS = 512
"""Most tokens of a pass that runs again what a row has beyond its recurrent state."""

Run = Callable[[torch.Tensor, torch.Tensor, SessionCache], torch.Tensor]
"""The blocks: `(hidden [T, H], position_ids [T], cache) -> [T, H]`."""

_Once = Callable[[torch.Tensor, torch.Tensor, PassRow], torch.Tensor]
"""One pass of tokens of a row: `(hidden [T, H], position_ids [T], row) -> [T, H]`."""


class SessionPasses:
    """Runs one row at a time through the cache that transformers itself would give a model."""

    def __init__(self, kinds: Sequence[LayerKind]) -> None:
        self._kinds = tuple(kinds)
        self.recurrent = any(kind.recurrent for kind in kinds)
        """Whether rewinding takes more than forgetting K/V. Then the store also keeps, as if they
        were the K/V of one more layer, what has entered the blocks (keys) and the bits of the
        positions (values): with them a row catches up from a snapshot of its state."""
        self.continues = True
        """Whether several tokens at once may follow those that are cached already."""

    def forward(
        self,
        run: Run,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        row: PassRow,
        kv: KVStore,
    ) -> torch.Tensor:
        """What the blocks make of the new tokens of `row`: `[row.count, hidden_size]`."""
        state = kv.state(row.row)
        once = partial(self._pass, run, kv, state)
        if self.recurrent and state.rewind(row.start) < row.start:
            self._catch_up(once, row, kv, state)
        return self._extend(once, hidden, position_ids, row)

    def _catch_up(self, once: _Once, row: PassRow, kv: KVStore, state: RowState) -> None:
        """Run again what `row` holds beyond its recurrent state."""
        held = kv.begin([PassRow(row.row, row.start, 0)])
        kept, bits = held.read(len(self._kinds), 0)
        # Copies: the slots are given back as the first of them is run again.
        hidden = kept[0, state.position :].clone()
        places = bits[0, state.position :].clone().view(torch.int64).view(-1)
        logger.debug("%d tokens are run again for a rewind to slot %d", len(hidden), row.start)
        pieces = (torch.split(each, CATCH_UP_TOKENS) for each in (hidden, places))
        for piece, piece_places in zip(*pieces, strict=True):
            again = PassRow(row.row, state.position, len(piece))
            self._extend(once, piece, piece_places, again)

    def _extend(
        self, once: _Once, hidden: torch.Tensor, position_ids: torch.Tensor, row: PassRow
    ) -> torch.Tensor:
        if not row.start or row.count == 1 or self.continues:
            return once(hidden, position_ids, row)
        pairs = zip(torch.split(hidden, 1), torch.split(position_ids, 1), strict=True)
        return torch.cat(
            [
                once(one, place, PassRow(row.row, row.start + index, 1))
                for index, (one, place) in enumerate(pairs)
            ]
        )

    def _pass(
        self,
        run: Run,
        kv: KVStore,
        state: RowState,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        row: PassRow,
    ) -> torch.Tensor:
        stored = kv.begin([row])
        if self.recurrent:
            state.before_pass(row.count)
            bits = position_ids.to(torch.int64).contiguous().view(hidden.dtype)
            stored.write(len(self._kinds), hidden.unsqueeze(0), bits.view(1, row.count, -1))
        cache = SessionCache(self._kinds, stored, row.start, state)
        output = run(hidden, position_ids, cache)
        if self.recurrent:
            cache.remember(state)
            state.after_pass(row.start + row.count)
        return output


def own_attention(model: PreTrainedModel) -> str:
    """Switch to attention of the model's own, the fastest that it has; its name."""
    with building_model():
        try:
            model.set_attn_implementation("sdpa")
        except ValueError:
            model.set_attn_implementation("eager")
    if model.config._attn_implementation == ATTENTION_NAME:
        # It knows one kind only, and looks here just for the kind of its masks.
        model.config._attn_implementation = "eager"
    return str(model.config._attn_implementation)
