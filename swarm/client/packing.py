"""Padding stays at home: which tokens of a batch travel, and where their answers belong."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Packing:
    """The tokens of a `[rows, columns]` batch that are not padding, row after row."""

    rows: int
    columns: int
    counts: tuple[int, ...]
    """Tokens of each row."""
    index: torch.Tensor | None
    """Where they lie in the flattened batch, int64 `[sum(counts)]`; None: everywhere."""

    @classmethod
    def of(cls, rows: int, columns: int, valid: torch.Tensor | None) -> "Packing":
        """`valid`: bool `[rows, columns]` on the CPU, False for padding; None: no padding."""
        if valid is None or bool(valid.all()):
            return cls(rows, columns, (columns,) * rows, None)
        counts = tuple(int(count) for count in valid.sum(dim=1).tolist())
        return cls(rows, columns, counts, valid.reshape(-1).nonzero().squeeze(1))

    def gather(self, batch: torch.Tensor) -> torch.Tensor:
        """`[rows, columns, ...]` to `[sum(counts), ...]`."""
        flat = batch.reshape(self.rows * self.columns, *batch.shape[2:])
        return flat if self.index is None else flat[self.index.to(flat.device)]

    def kept(self, keep: int) -> tuple[int, ...]:
        """How many answers each row gets when the last `keep` are asked for."""
        return tuple(min(keep, count) for count in self.counts)

    def scatter(self, answers: torch.Tensor, keep: int) -> torch.Tensor:
        """`[sum(kept(keep)), hidden]` back to `[rows, columns, hidden]`, zero elsewhere."""
        hidden = answers.shape[-1]
        if self.index is None and keep >= self.columns:
            return answers.reshape(self.rows, self.columns, hidden)
        batch = answers.new_zeros((self.rows, self.columns, hidden))
        if self.index is None:
            batch[:, self.columns - keep :] = answers.reshape(self.rows, keep, hidden)
        else:
            batch.view(-1, hidden)[self._kept_index(keep).to(batch.device)] = answers
        return batch

    def _kept_index(self, keep: int) -> torch.Tensor:
        assert self.index is not None
        return torch.cat([row[-keep:] for row in torch.split(self.index, list(self.counts))])
