"""What the tests of tiny random models compare: plain transformers, ids, greedy answers."""

import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_models import SIZES, save_tiny  # noqa: F401  (for the tests here)
from transformers import AutoModelForCausalLM as PlainAutoModel

from swarm import AutoModelForCausalLM
from swarm.testing import LocalSwarm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from architectures import draw  # noqa: F401  (for the tests here)

LOGITS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Pair:
    """The same checkpoint twice, and the servers of one of them."""

    plain: Any
    remote: Any
    swarm: LocalSwarm
    folder: Path


def plain_model(folder: Path) -> Any:
    """The reference: plain transformers, float32."""
    return PlainAutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def joined_by(address: str, folder: Path, **options: Any) -> "closing[Any]":
    """The swarm's model, as a user loads it."""
    return closing(AutoModelForCausalLM.from_pretrained(folder, initial_peers=[address], **options))


def some_ids(length: int, *, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Random ids of the tiny vocabulary, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 96, (rows, length), generator=generator)


def greedy(model: Any, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """Exactly `tokens` new ids, greedily."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    found: torch.Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return found
