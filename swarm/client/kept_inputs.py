"""What went into the blocks so far, kept here so that a session can be begun again."""

import torch


class KeptInputs:
    """The embeddings of a batch, column after column, followed through forks and rewinds.

    Chunks stay as they came; only which of their rows each row of the batch continues changes.
    """

    def __init__(self) -> None:
        self._chunks: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Embeddings `[rows then, columns, hidden_size]` and positions `[rows then, columns]`."""
        self._sources: torch.Tensor | None = None
        """int64 `[rows, chunks]`: the row of each chunk that a row has."""

    def append(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> None:
        """`hidden`: `[rows, columns, hidden_size]`; `position_ids`: `[1 or rows, columns]`."""
        rows, columns = hidden.shape[:2]
        positions = position_ids.detach().cpu().expand(rows, columns).clone()
        self._chunks.append((hidden.detach().to("cpu", copy=True), positions))
        new = torch.arange(rows)[:, None]
        self._sources = new if self._sources is None else torch.cat([self._sources, new], dim=1)

    def select(self, indices: torch.Tensor) -> None:
        """Row r continues what was row `indices[r]`."""
        if self._sources is not None:
            self._sources = self._sources[indices]

    def rewind(self, columns: int) -> None:
        """Keep the first `columns` columns."""
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        for hidden, positions in self._chunks:
            if columns <= 0:
                break
            kept.append((hidden[:, :columns], positions[:, :columns]))
            columns -= hidden.shape[1]
        self._chunks = kept
        if self._sources is not None:
            self._sources = self._sources[:, : len(kept)] if kept else None

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All columns: `[rows, columns, hidden_size]` and `[rows, columns]`."""
        assert self._sources is not None
        parts = [
            (hidden[rows], positions[rows])
            for (hidden, positions), rows in zip(self._chunks, self._sources.T, strict=True)
        ]
        hidden, positions = zip(*parts, strict=True)
        return torch.cat(hidden, dim=1), torch.cat(positions, dim=1)
