"""Prompts in chunks of any size, over any number of hops, with streams that break: same ids."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from same_ids import assert_same_ids
from tiny_models import save_tiny
from tiny_pairs import greedy, plain_model, some_ids

from swarm.client.encoding import encode_piece
from swarm.client.swarm import Swarm
from swarm.models.slice import BlockSlice
from swarm.sessions.messages import Step
from swarm.testing import LocalSwarm

ROUTES = {1: ["0:4"], 2: ["0:2", "2:4"], 4: ["0:1", "1:2", "2:3", "3:4"]}
PROMPT_TOKENS = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where: Path = tmp_path_factory.mktemp("models") / "chunked"
    save_tiny("llama", where)
    return where


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return plain_model(folder)


@pytest.fixture(scope="module", params=ROUTES)
def swarm(request: pytest.FixtureRequest, folder: Path) -> Iterator[LocalSwarm]:
    with LocalSwarm(folder, *ROUTES[request.param]) as swarm:
        swarm.set_path(delay_s=0.002, bandwidth_bytes_per_s=2e6)
        yield swarm


@pytest.mark.parametrize("chunk", [1, 7, 64, None])
def test_ids_do_not_depend_on_the_chunks(swarm: LocalSwarm, plain: Any, chunk: int | None) -> None:
    ids = some_ids(PROMPT_TOKENS, seed=chunk or 0)
    with swarm.client(prefill_chunk_tokens=chunk) as model:
        assert_same_ids(plain, greedy(plain, ids, 6), greedy(model, ids, 6))


def test_the_first_chunk_is_sent_before_the_last_is_made(
    swarm: LocalSwarm, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = threading.Event()
    sent_first: list[bool] = []

    def send(self: Swarm, to: Any, message: Any, *arguments: Any, **options: Any) -> None:
        real_send(self, to, message, *arguments, **options)
        if isinstance(message, Step):
            sent.set()

    def encode(piece: Any, step: Any, dtype: Any) -> Any:
        if piece.start and piece.end == PROMPT_TOKENS:
            sent_first.append(sent.wait(10))
        return encode_piece(piece, step, dtype)

    real_send = Swarm.send
    monkeypatch.setattr(Swarm, "send", send)
    monkeypatch.setattr("swarm.client.remote_session.encode_piece", encode)
    ids = some_ids(PROMPT_TOKENS, seed=3)
    with swarm.client(prefill_chunk_tokens=20) as model:
        assert_same_ids(plain, greedy(plain, ids, 2), greedy(model, ids, 2))
    assert sent_first == [True]


def test_the_second_server_computes_a_chunk_while_the_first_has_more_to_compute(
    folder: Path, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first server begins the last chunk when the second has computed one."""
    second = threading.Event()
    waited: list[bool] = []

    def forward(blocks: BlockSlice, hidden: Any, positions: Any, rows: Any, kv: Any) -> Any:
        if not blocks.span.start and rows[0].start + rows[0].count == PROMPT_TOKENS:
            waited.append(second.wait(10))
        output = real_forward(blocks, hidden, positions, rows, kv)
        if blocks.span.start:
            second.set()
        return output

    real_forward = BlockSlice.forward
    ids = some_ids(PROMPT_TOKENS, seed=4)
    with (
        LocalSwarm(folder, "0:2", "2:4") as swarm,
        swarm.client(prefill_chunk_tokens=20) as model,
    ):
        monkeypatch.setattr(BlockSlice, "forward", forward)
        assert_same_ids(plain, greedy(plain, ids, 2), greedy(model, ids, 2))
    assert waited == [True]


def test_a_prompt_that_cannot_be_made_to_the_end_ends_the_session(
    swarm: LocalSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(piece: Any, step: Any, dtype: Any) -> Any:
        if piece.start:
            raise MemoryError("no room")
        return encode_piece(piece, step, dtype)

    monkeypatch.setattr("swarm.client.remote_session.encode_piece", encode)
    with swarm.client(prefill_chunk_tokens=20) as model:
        with pytest.raises(MemoryError, match="no room"):
            greedy(model, some_ids(PROMPT_TOKENS, seed=3), 2)
        swarm.wait_until_free()


def test_ids_do_not_depend_on_streams_that_break(swarm: LocalSwarm, plain: Any) -> None:
    """All streams end again and again while the prompt and the tokens travel."""
    ids = some_ids(PROMPT_TOKENS, seed=5)
    broken: list[int] = []
    over = threading.Event()

    def trouble() -> None:
        while not over.wait(0.05):
            broken.append(swarm.break_streams())

    with swarm.client(prefill_chunk_tokens=7) as model:
        model.generate(ids[:, :3], max_new_tokens=1)
        thread = threading.Thread(target=trouble)
        thread.start()
        try:
            got = greedy(model, ids, 6)
        finally:
            over.set()
            thread.join()
    assert_same_ids(plain, greedy(plain, ids, 6), got)
    assert sum(broken) > 0
