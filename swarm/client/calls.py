"""What a call knows that a layer is not told: passed beside transformers, one context each."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from swarm.client.cache import RemoteCache


@dataclass(frozen=True)
class Call:
    """One `forward()` of a swarm's model, as the module in place of its layers sees it."""

    cache: "RemoteCache"
    valid: torch.Tensor | None
    """Bool `[rows, new columns]` on the CPU, False for padding; None: no padding."""
    input_ids: torch.Tensor | None
    """`[rows, new columns]`; None: embeddings were given."""
    keep: int
    """How many of the last columns' answers are needed."""


@dataclass
class Generation:
    """One `generate()`: its cache is found again when a model drops it on purpose."""

    model: object
    cache: "RemoteCache | None" = None
    skip: int = 0
    """How many of the columns that the next pass is given the cache holds already."""


current_call: ContextVar[Call | None] = ContextVar("swarm_call", default=None)
current_generation: ContextVar[Generation | None] = ContextVar("swarm_generation", default=None)
