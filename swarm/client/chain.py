"""What the model's side needs of a session: run tokens through all blocks, and close."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from swarm.sessions.messages import Hop, RowOperation


@dataclass(frozen=True)
class ChainStep:
    """New tokens for the rows of one session, without padding.

    `hidden`: `[sum(counts), hidden_size]`, row 0's tokens, then row 1's, ...
    `starts[r]`: the slots that row r holds already, after `operation`; `counts[r]`: its new ones.
    `position_ids`: `sum(counts)` of them. `keep`: how many of each row's last new tokens are asked
    for; the answer is `[sum(min(keep, counts[r])), hidden_size]`.
    """

    hidden: torch.Tensor
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    position_ids: Sequence[int]
    keep: int
    operation: RowOperation | None


class Chain(Protocol):
    """A session over all blocks of the model, used from one thread at a time."""

    @property
    def route(self) -> tuple[Hop, ...]: ...

    @property
    def length(self) -> int:
        """Slots that each row has."""
        ...

    @property
    def is_over(self) -> bool:
        """It has ended, also if nobody has asked it for a step since; every step would fail."""
        ...

    def step(self, step: ChainStep) -> torch.Tensor:
        """The outputs of the last block, in the dtype of `step.hidden`, on the CPU."""
        ...

    def close(self) -> None:
        """Frees the servers. Never waits, never raises, may be called twice and anywhere."""
        ...


OnPrefill = Callable[[int, int], None]
"""Told `(tokens done, tokens)` while a prompt of several pieces is computed; in its loop."""

OpenChain = Callable[[int, int, int], Chain]
"""Opens a session for `(rows, length, least)`: so many rows of `length` slots each, or of `least`
where nobody has room for more now."""
