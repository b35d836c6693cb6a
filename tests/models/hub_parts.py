"""What is fetched of a checkpoint on a hub, and whether it is what was stored."""

import torch
from transformers import PreTrainedModel

from swarm.models.checkpoint import Checkpoint
from swarm.spans import Span


def names_of(checkpoint: Checkpoint, start: int, end: int) -> list[str]:
    return list(checkpoint.block_tensors(Span(start, end)).values())


def stored(checkpoint: Checkpoint, names: list[str]) -> int:
    return sum(checkpoint.tensors[name].nbytes for name in names)


def fetch(checkpoint: Checkpoint, names: list[str]) -> list[tuple[int, int]]:
    """What the progress said."""
    told: list[tuple[int, int]] = []
    checkpoint.fetch(names, lambda done, total: told.append((done, total)))
    return told


def assert_equal(checkpoint: Checkpoint, names: list[str], plain: PreTrainedModel) -> None:
    expected = plain.state_dict()
    for name, tensor in checkpoint.read(names).items():
        assert torch.equal(tensor, expected[name]), name
