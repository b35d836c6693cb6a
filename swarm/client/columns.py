"""The columns of transformers' batches that a cache has: their ids, and which are padding."""

import torch

from swarm.client.alignment import UNKNOWN_ID, Alignment, align
from swarm.client.packing import Packing
from swarm.errors import NotServedError


class Columns:
    """A column is a position of the padded batch; everything is kept on the CPU."""

    def __init__(self) -> None:
        self.count = 0
        self._valid: torch.Tensor | None = None
        """Bool `[rows, count]`; None: no padding so far."""
        self._ids: torch.Tensor | None = None
        """int64 `[rows, count]`."""

    @property
    def has_padding(self) -> bool:
        return self._valid is not None and not bool(self._valid.all())

    def tokens(self, rows: int) -> tuple[int, ...]:
        """How many columns of each row are no padding."""
        if self._valid is None:
            return (self.count,) * rows
        return tuple(self._valid.sum(dim=1).tolist())

    def packing(self, rows: int) -> Packing:
        return Packing.of(rows, self.count, self._valid)

    def append(
        self, packing: Packing, valid: torch.Tensor | None, ids: torch.Tensor | None
    ) -> None:
        """New columns; `valid` bool `[rows, columns]`, None: no padding; `ids` None: embeddings."""
        rows, columns = packing.rows, packing.columns
        if packing.index is not None or self._valid is not None:
            old = self._valid
            if old is None:
                old = torch.ones((rows, self.count), dtype=torch.bool)
            new = torch.ones((rows, columns), dtype=torch.bool) if valid is None else valid
            self._valid = torch.cat([old, new], dim=1)
        if ids is None:
            ids = torch.full((rows, columns), UNKNOWN_ID)
        ids = ids.detach().cpu()
        self._ids = ids if self._ids is None else torch.cat([self._ids, ids], dim=1)
        self.count += columns

    def rewind(self, columns: int) -> None:
        """Keep the first `columns`."""
        self._valid = None if self._valid is None else self._valid[:, :columns]
        self._ids = None if self._ids is None else self._ids[:, :columns]
        self.count = columns

    def select(self, rows: torch.Tensor) -> None:
        """New row r is old row `rows[r]`."""
        self._valid = None if self._valid is None else self._valid[rows]
        self._ids = None if self._ids is None else self._ids[rows]

    def align(self, input_ids: torch.Tensor, mask: torch.Tensor | None) -> Alignment | None:
        """Keep what `input_ids` begins with, from whichever row; None: there is nothing yet."""
        if self._ids is None or self.count == 0:
            return None
        ids = input_ids.detach().cpu()
        valid = None if mask is None else mask.detach().cpu().bool()
        kept = align(self._ids, self._valid, ids, valid)
        self._ids = ids[:, : kept.columns]
        self._valid = None if valid is None else valid[:, : kept.columns]
        self.count = kept.columns
        return kept

    def holds(self, input_ids: torch.Tensor) -> bool:
        """Whether all of these are held. Raises NotServedError if as many others are."""
        columns = input_ids.shape[1]
        if self._ids is None or self.count < columns:
            return False
        if not torch.equal(self._ids[:, :columns], input_ids.detach().cpu()):
            raise NotServedError(
                f"past_key_values holds {self.count} columns, but not these {columns} ids; give "
                "all ids, or only the new ones with the attention_mask of all columns"
            )
        return True

    def new_of(self, mask: torch.Tensor, new_columns: int, copies: int) -> torch.Tensor:
        """The new columns of an attention mask, as bool `[rows, new columns]`.

        `copies`: the mask may have each row so often, in runs. Raises NotServedError for masks that
        are not `[rows, all columns]`, or that change what was padding and what was not.
        """
        if mask.dim() != 2:
            raise NotServedError(
                f"attention_mask has shape {list(mask.shape)}; the swarm serves 2D masks "
                "that mark padding, [rows, columns]"
            )
        columns = self.count + new_columns
        if mask.shape[1] != columns:
            raise NotServedError(
                f"attention_mask has {mask.shape[1]} columns, but {self.count} are "
                f"held and {new_columns} are new; give the mask of all {columns}"
            )
        valid = mask.detach().cpu().bool()
        if not self._agrees(valid[:, : self.count], copies):
            raise NotServedError(
                "attention_mask changes columns that the servers already hold; what was padding "
                "must stay padding"
            )
        return valid[:, self.count :]

    def _agrees(self, past: torch.Tensor, copies: int) -> bool:
        held = self._valid
        if held is None:
            return bool(past.all())
        if past.shape[0] == held.shape[0] * copies:
            held = held.repeat_interleave(copies, dim=0)
        return torch.equal(past, held)
