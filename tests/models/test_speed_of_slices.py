"""The speed that a server announces is measured within what its model has positions for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_layers_take_turns_in_the_room_for_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms: list[Any] = []

    def forward(
        self: BlockSlice, *given: Any, original: Callable[..., Any] = BlockSlice.forward
    ) -> Any:
        rooms.append(given[-1])
        return original(self, *given)

    with building_model():
        draw("llama").save_pretrained(tmp_path)
    blocks = BlockSlice.load(open_checkpoint(str(tmp_path)), Span(0, 4))
    monkeypatch.setattr(BlockSlice, "forward", forward)
    measure_speed(blocks)
    (room,) = {id(room): room for room in rooms}.values()
    for tensors in (room.keys, room.values):
        assert len(tensors) == 4 and len({tensor.data_ptr() for tensor in tensors}) == 1
