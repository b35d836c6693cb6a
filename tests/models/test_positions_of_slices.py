"""A place that a model does not have is refused before it is looked up."""

from pathlib import Path

import pytest
import torch
from architectures import draw

from swarm.errors import StepRejectedError
from swarm.models.building import building_model
from swarm.models.checkpoint import open_checkpoint
from swarm.models.packed_attention import PassRow
from swarm.models.slice import BlockSlice
from swarm.models.slice_proof import GrowingStore
from swarm.spans import Span


def loaded(folder: Path, architecture: str, **sizes: int) -> BlockSlice:
    with building_model():
        draw(architecture, **sizes).save_pretrained(folder)
    return BlockSlice.load(open_checkpoint(str(folder)), Span(1, 3))


def run(blocks: BlockSlice, *positions: int) -> torch.Tensor:
    hidden = torch.zeros(len(positions), blocks.hidden_size)
    rows = [PassRow(0, 0, len(positions))]
    return blocks.forward(hidden, torch.tensor(positions), rows, GrowingStore())


@pytest.mark.parametrize("architecture", ["gptj", "codegen"])
def test_tables_inside_the_blocks_are_not_overrun(architecture: str, tmp_path: Path) -> None:
    blocks = loaded(tmp_path, architecture, n_positions=40, n_ctx=40)
    assert run(blocks, 38, 39).isfinite().all()
    for part in (blocks, blocks.part(Span(2, 3))):
        with pytest.raises(StepRejectedError, match="position 40 in a model that has 40"):
            run(part, 39, 40)
    assert run(blocks, 38, 39).isfinite().all()


def test_positions_that_are_computed_have_no_end(tmp_path: Path) -> None:
    blocks = loaded(tmp_path, "llama", max_position_embeddings=40)
    assert run(blocks, 39, 40, 1 << 20).isfinite().all()
