"""Models that are loaded in several threads of one process do not disturb each other."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny
from transformers import PreTrainedModel

from swarm.models.checkpoint import open_checkpoint
from swarm.models.slice import BlockSlice
from swarm.spans import Span


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_threads_that_load_at_once(tmp_path: Path, hasty_threads: None) -> None:
    save_tiny("llama", tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    ties, dtype = PreTrainedModel.tie_weights, torch.get_default_dtype()

    def load(turn: int) -> torch.dtype:
        asked = (torch.bfloat16, torch.float32)[turn % 2]
        return BlockSlice.load(checkpoint, Span(turn % 3, 4), dtype=asked).dtype

    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(load, range(24)))

    assert loaded == [torch.bfloat16, torch.float32] * 12
    assert PreTrainedModel.tie_weights is ties
    assert torch.get_default_dtype() is dtype
