"""What a generation gives without the swarm, and things that happen in the middle of one."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny_pairs import greedy, plain_model
from transformers import StoppingCriteria


class AtTokens(StoppingCriteria):  # type: ignore[misc]
    """Calls `events[n]` once n new tokens are there; stops nothing."""

    def __init__(self, prompt_length: int, events: Mapping[int, Callable[[], object]]) -> None:
        self._prompt_length = prompt_length
        self._events = dict(events)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        event = self._events.pop(input_ids.shape[1] - self._prompt_length, None)
        if event is not None:
            event()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@cache
def _plain(folder: Path) -> Any:
    return plain_model(folder)


def plain_ids(folder: Path, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """The greedy ids of the same model in plain transformers."""
    return greedy(_plain(folder), ids, tokens)


def plain_generate(folder: Path, ids: torch.Tensor, tokens: int, **options: Any) -> torch.Tensor:
    """What `generate` gives of the same model in plain transformers."""
    given = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": False,
    }
    found: torch.Tensor = _plain(folder).generate(ids, **{**given, **options})
    return found


def generate(
    model: Any,
    ids: torch.Tensor,
    tokens: int,
    events: Mapping[int, Callable[[], object]] | None = None,
    **options: Any,
) -> torch.Tensor:
    """Exactly `tokens` new ids, greedily unless `options` say otherwise.

    `events[n]` is called once n new tokens are there; `events[0]` when the session is open and
    nothing has been computed.
    """
    left = dict(events or {})
    at_first, remote = left.pop(0, None), model._remote
    open_chain = remote.open_chain

    def opened(*arguments: Any) -> Any:
        chain = open_chain(*arguments)
        remote.last_route = chain.route
        remote.open_chain = open_chain
        at_first()
        return chain

    if at_first is not None:
        remote.open_chain = opened
    given = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": False,
        "stopping_criteria": [AtTokens(ids.shape[1], left)],
    }
    found: torch.Tensor = model.generate(ids, **{**given, **options})
    return found
