"""What is cancelled, released, wrong or broken ends there, and the engine goes on."""

import threading

import pytest
from summing_engine import BREAKS, OVERFLOWS, PATIENCE_S, World, name, sums

from swarm.errors import (
    CacheFullError,
    NotFiniteError,
    SessionError,
    SessionFullError,
    SessionLostError,
    StepRejectedError,
)
from swarm.scheduling.classes import ServiceClass
from swarm.server.engine_jobs import EngineResult
from swarm.sessions.messages import RowOperation


def test_a_step_that_is_cancelled_between_its_passes_goes_no_further(world: World) -> None:
    world.blocks.free.clear()
    prompt = world.submit(1, [[1.0] * 20])
    assert world.blocks.entered.acquire(timeout=PATIENCE_S)
    world.engine.cancel(name(1))
    world.blocks.free.set()
    again = world.submit(1, [[2.0] * 10])()
    assert again.error is None
    assert again.output is not None
    assert again.output[-1].item() == 20.0, "it begins where its client says, over what was done"
    assert not prompt.has_come
    assert world.blocks.passes == [[8], [8], [2]]


def test_a_step_with_a_part_that_fails_has_one_answer(world: World) -> None:
    values = [1.0] * 20
    values[10] = OVERFLOWS
    failed = world.submit(1, [values])()
    assert isinstance(failed.error, NotFiniteError)
    assert world.submit(2, [[1.0]])().error is None
    assert sum(len(batch) for batch in world.batches) == 2
    assert world.engine.stats().waiting_jobs == 0


def test_a_cancelled_step_gives_no_result_but_its_operation_holds(world: World) -> None:
    world.submit(1, [[1, 2, 3], [10, 20]])()
    held = world.hold()
    first = world.submit(
        1, [[9], [9]], [1, 2], operation=RowOperation(parents=(1, 0), truncate_to=(1, 2))
    )
    second = world.submit(1, [[9], [9]], [2, 3])
    world.engine.cancel(name(1))
    swapped = RowOperation(parents=(1, 1), truncate_to=(2, 2))
    answer = world.submit(1, [[7], [8]], [2, 2], operation=swapped)
    world.blocks.free.set()
    held()
    assert sums(answer()) == [10, 11]
    assert not first.has_come
    assert not second.has_come
    world.cache.validate()


def test_released_sessions_leave_the_cache_as_it_was(world: World) -> None:
    world.submit(1, [[1.0]])()
    free = world.cache.free_tokens
    world.engine.reserve(name(7), 3, 9)
    world.submit(7, [[1.0] * 9, [1.0] * 2, [1.0]])()
    assert world.cache.free_tokens == free - 3 * 12
    held = world.hold()
    dropped = world.submit(7, [[], [], [1.0]], [9, 2, 1])
    world.engine.release(name(7))
    world.engine.release(name(7))
    lost = world.submit(7, [[1.0]])
    world.blocks.free.set()
    held()
    assert isinstance(lost().error, SessionLostError)
    assert not dropped.has_come
    assert world.cache.free_tokens == free
    world.cache.validate()


@pytest.mark.parametrize(
    ("values", "starts", "positions", "error"),
    [
        ([[1.0]], [9], None, StepRejectedError),
        ([[1.0] * 40], [0], None, SessionFullError),
        ([[1.0], [1.0], [1.0]], [0, 0, 0], None, StepRejectedError),
        ([[1.0]], [0], 2, StepRejectedError),
        ([[float("nan")]], [0], None, StepRejectedError),
        ([[OVERFLOWS]], [0], None, NotFiniteError),
        ([[BREAKS]], [0], None, SessionError),
    ],
)
def test_a_job_that_fails_does_not_hurt_the_others(
    world: World,
    values: list[list[float]],
    starts: list[int],
    positions: int | None,
    error: type[SessionError],
) -> None:
    held = world.hold()
    good = world.submit(1, [[1.0]])
    bad = world.submit(2, values, starts, service_class=ServiceClass.DECODE, positions=positions)
    other = world.submit(3, [[5.0]])
    world.blocks.free.set()
    held()
    failed = bad()
    assert type(failed.error) is error
    assert failed.output is None
    assert isinstance(failed.error, SessionError)
    assert failed.error.session == name(2)
    assert sums(good()) == [1]
    assert sums(other()) == [5]
    assert sums(world.submit(1, [[2.0]], [1])()) == [3]
    assert world.engine.stats().failed_jobs == 1


def test_a_session_without_room_is_told_so(world: World) -> None:
    world.engine.reserve(name(7), 100, 100)
    assert isinstance(world.submit(7, [[1.0]])().error, CacheFullError)
    world.engine.release(name(7))
    world.engine.reserve(name(7), 1, 4)
    assert sums(world.submit(7, [[1.0]])()) == [1]


def test_a_listener_that_fails_does_not_stop_the_engine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = threading.Event()
    real = world.on_results

    def fail_once(results: list[EngineResult]) -> None:
        heard.set()
        world.engine._on_results = real
        raise RuntimeError("the loop is closed")

    monkeypatch.setattr(world.engine, "_on_results", fail_once)
    world.submit(1, [[1.0]])
    assert heard.wait(PATIENCE_S)
    assert sums(world.submit(1, [[2.0]], [1])()) == [3]


def test_a_pass_that_breaks_in_the_middle_ends_its_sessions_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(world.engine._runner, "run", lambda *_: 1 / 0)
        error = world.submit(1, [[1.0]])().error
    assert isinstance(error, SessionError) and error.session == name(1)
    assert world.engine.alive
    assert sums(world.submit(2, [[2.0]])()) == [2]


def test_stop_ends_the_thread_and_drops_what_waits(world: World) -> None:
    held = world.hold()
    world.submit(1, [[1.0]])
    assert not world.engine.stop(0.01)
    world.blocks.free.set()
    assert world.engine.stop(PATIENCE_S)
    held()
    assert world.blocks.passes == [[1]]
    assert not any(thread.name == "swarm-engine" for thread in threading.enumerate())
