"""The speed that a server announces is measured within what its model has positions for."""

from pathlib import Path

import pytest
from architectures import draw

from swarm.models.building import building_model
from swarm.models.checkpoint import open_checkpoint
from swarm.models.slice import BlockSlice
from swarm.server.speed import measure_speed
from swarm.spans import Span


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("gptj", {"n_positions": 40, "n_ctx": 40}),
        ("codegen", {"n_positions": 40, "n_ctx": 40}),
        ("mpt", {"max_seq_len": 40}),
        ("gpt_neo", {"max_position_embeddings": 40}),
        ("llama", {"max_position_embeddings": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_short_context_is_measured(
    architecture: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    with building_model():
        draw(architecture, **sizes).save_pretrained(tmp_path)
    speed = measure_speed(BlockSlice.load(open_checkpoint(str(tmp_path)), Span(1, 3)))
    assert speed.decode_ms_per_block > 0
    assert speed.prefill_tokens_per_s > 0
