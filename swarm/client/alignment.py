"""What a session may keep of its cache when it is given all ids of another conversation."""

from dataclasses import dataclass

import torch

UNKNOWN_ID = -1
"""Stands for a slot that was fed as an embedding; equal to no token."""


@dataclass(frozen=True)
class Alignment:
    """Row r keeps `columns` columns: the first `slots[r]` slots of old row `parents[r]`."""

    parents: list[int]
    columns: int
    slots: tuple[int, ...]


def align(
    held: torch.Tensor,
    held_valid: torch.Tensor | None,
    ids: torch.Tensor,
    valid: torch.Tensor | None,
) -> Alignment:
    """The most columns of `ids` that are held already, with at least one left to compute.

    Each new row continues the held row with which it shares most tokens, padding apart. Ids are
    int64 `[rows, columns]`; `valid` is bool of the same shape, None without padding.
    """
    old = _tokens(held, held_valid)
    parents, common = [], []
    for row, wanted in enumerate(_tokens(ids, valid)):
        shared = [_common_prefix(wanted, other) for other in old]
        best = max(range(len(old)), key=lambda index: (shared[index], index == row))
        parents.append(best)
        common.append(shared[best])
    columns = ids.shape[1] - 1
    if valid is None:
        columns = min(columns, *common)
        return Alignment(parents, columns, (columns,) * len(parents))
    # A row's count of tokens only grows, so the columns that fit every row come first.
    fits = (valid.cumsum(dim=1) <= torch.tensor(common)[:, None]).all(dim=0)
    columns = min(columns, int(fits.sum()))
    return Alignment(parents, columns, tuple(valid[:, :columns].sum(dim=1).tolist()))


def _tokens(ids: torch.Tensor, valid: torch.Tensor | None) -> list[list[int]]:
    if valid is None:
        return [[int(token) for token in row] for row in ids.tolist()]
    return [row[keep].tolist() for row, keep in zip(ids, valid, strict=True)]


def _common_prefix(first: list[int], second: list[int]) -> int:
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b or a == UNKNOWN_ID:
            return index
    return min(len(first), len(second))
