import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import pytest
import torch

from swarm.errors import (
    CacheFullError,
    NotFiniteError,
    SessionError,
    SessionFullError,
    SessionLostError,
    StepRejectedError,
)
from swarm.models.packed_attention import KVStore, PassRow
from swarm.scheduling.classes import ServiceClass
from swarm.server.engine import Engine
from swarm.server.engine_jobs import EngineJob, EngineResult
from swarm.server.kv_cache import PagedCache
from swarm.sessions.messages import RowOperation
from swarm.spans import SessionId, Span

PATIENCE_S = 60.0
BREAKS, OVERFLOWS = -1.0, -2.0
"""Values of a token that make the fake blocks raise, or answer infinity."""


class SummingBlocks:
    """Answers each token with the sum of its row up to it, out of the K/V store."""

    span, hidden_size = Span(2, 5), 1
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        self.passes: list[list[int]] = []
        """Tokens of each row, in each pass."""
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Semaphore(0)

    def part(self, span: Span) -> "SummingBlocks":
        assert self.span.covers(span)
        return self

    def forward(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        rows: Sequence[PassRow],
        kv: KVStore,
    ) -> torch.Tensor:
        self.entered.release()
        assert self.free.wait(PATIENCE_S)
        assert position_ids.shape == (len(hidden),)
        if bool((hidden == BREAKS).any()):
            raise RuntimeError("broken blocks")
        self.passes.append([row.count for row in rows])
        current = kv.begin(rows)
        current.write(0, hidden.view(1, -1, 1), hidden.view(1, -1, 1))
        sums = []
        for index, row in enumerate(rows):
            keys, _ = current.read(0, index)
            sums.append(torch.cumsum(keys.view(-1), 0)[row.start :])
        output = torch.cat(sums).view(-1, 1)
        return torch.where(hidden == OVERFLOWS, torch.inf, output)


@dataclass
class Answer:
    """A job's result to come: call it to wait for it."""

    job: EngineJob
    future: Future[EngineResult] = field(default_factory=Future)

    def __call__(self) -> EngineResult:
        return self.future.result(PATIENCE_S)

    @property
    def has_come(self) -> bool:
        return self.future.done()


@dataclass
class World:
    blocks: SummingBlocks
    cache: PagedCache
    batches: list[list[EngineResult]] = field(default_factory=list)
    answers: dict[int, Answer] = field(default_factory=dict)
    holds: int = 0
    """Passes of `hold` so far."""
    engine: Engine = None  # type: ignore[assignment]

    def on_results(self, results: list[EngineResult]) -> None:
        self.batches.append(results)
        for result in results:
            self.answers[id(result.job)].future.set_result(result)

    def submit(
        self,
        session: int,
        values: Sequence[Sequence[float]],
        starts: Sequence[int] | None = None,
        *,
        operation: RowOperation | None = None,
        service_class: ServiceClass | None = None,
        positions: int | None = None,
    ) -> Answer:
        counts = tuple(len(row) for row in values)
        tokens = [value for row in values for value in row]
        if service_class is None:
            decode = max(counts) <= 1
            service_class = ServiceClass.DECODE if decode else ServiceClass.PREFILL
        job = EngineJob(
            session=name(session),
            client="client",
            epoch=0,
            seq=0,
            service_class=service_class,
            operation=operation,
            starts=tuple(starts or [0] * len(values)),
            counts=counts,
            position_ids=range(len(tokens) if positions is None else positions),
            hidden=torch.tensor(tokens).view(-1, 1),
            blocks=self.blocks.span,
        )
        self.answers[id(job)] = answer = Answer(job)
        self.engine.submit(job)
        return answer

    def hold(self) -> Answer:
        """Keep the engine busy with a pass of session 0 until `blocks.free` is set."""
        self.blocks.free.clear()
        while self.blocks.entered.acquire(blocking=False):
            pass
        waiting = self.submit(0, [[0.0]], [self.holds])
        self.holds += 1
        assert self.blocks.entered.acquire(timeout=PATIENCE_S)
        return waiting


def name(number: int) -> SessionId:
    return SessionId(bytes([number]) * 16)


def sums(result: EngineResult) -> list[float]:
    assert result.error is None
    assert result.output is not None
    return [float(value) for value in result.output.view(-1)]


@pytest.fixture
def world() -> Iterator[World]:
    blocks = SummingBlocks()
    made = World(blocks, PagedCache([(1, 1, 1)], 512, page_tokens=4))
    made.engine = Engine(blocks, made.cache, made.on_results, max_pass_tokens=8)
    made.engine.start()
    for session in range(4):
        made.engine.reserve(name(session), 2, 32)
    yield made
    blocks.free.set()
    assert made.engine.stop(PATIENCE_S)


def test_a_session_computes_step_by_step(world: World) -> None:
    assert sums(world.submit(1, [[1, 2], [10]])()) == [1, 3, 10]
    result = world.submit(1, [[3], [20]], [2, 1])()
    assert sums(result) == [6, 30]
    assert result.compute_ms > 0
    assert result.queue_ms >= 0
    assert world.cache.held(name(1)) == (3, 2)


def test_rows_without_new_tokens_take_no_part(world: World) -> None:
    world.submit(1, [[1], [2]])()
    assert sums(world.submit(1, [[], [3]], [1, 1])()) == [5]
    assert world.blocks.passes[-1] == [1]
    assert sums(world.submit(1, [[], []], [1, 2])()) == []


def test_all_ready_decode_rows_join_before_any_prefill(world: World) -> None:
    for session in (1, 2, 3):
        world.submit(session, [[1.0] * 3])()
    held = world.hold()
    prompt = world.submit(3, [[1.0] * 6], [3])
    tokens = [world.submit(session, [[1.0]], [3]) for session in (1, 2)]
    world.blocks.free.set()
    held()
    assert [sums(token())[-1] for token in tokens] == [4, 4]
    assert sums(prompt())[-1] == 9
    assert world.blocks.passes[-1] == [1, 1, 6]
    assert [result.job.session for result in world.batches[-1]] == [name(1), name(2), name(3)]


def test_long_prompts_take_several_passes_and_let_others_in(world: World) -> None:
    held = world.hold()
    prompts = [world.submit(session, [[1.0] * size]) for session, size in ((1, 20), (2, 5), (3, 4))]
    world.blocks.free.set()
    held()
    for prompt in prompts:
        prompt()
    assert world.blocks.passes[1:] == [[8], [5, 3], [1, 7], [5]]
    for prompt, size in zip(prompts, (20, 5, 4), strict=True):
        output = prompt().output
        assert output is not None
        assert output.view(-1).tolist() == [1.0 + index for index in range(size)]
    held = world.hold()
    prompts = [world.submit(session, [[1.0] * 4], [start]) for session, start in ((1, 20), (2, 5))]
    world.blocks.free.set()
    for prompt in prompts:
        prompt()
    assert world.blocks.passes[-1] == [4, 4]


def test_a_step_of_several_rows_is_cut_anywhere(world: World) -> None:
    rows = [[1.0] * 5, [2.0] * 9]
    answer = world.submit(1, rows, service_class=ServiceClass.PREFILL)()
    assert world.blocks.passes == [[5, 3], [6]]
    assert answer.output is not None
    expected = [value * (1 + index) for row in rows for index, value in enumerate(row)]
    assert answer.output.view(-1).tolist() == expected
    assert world.cache.held(name(1)) == (5, 9)


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


def test_decode_has_a_budget_and_does_not_shut_prompts_out(world: World) -> None:
    held = world.hold()
    decode = ServiceClass.DECODE
    tokens = [world.submit(session, [[1.0] * 5], service_class=decode) for session in (1, 2)]
    prompt = world.submit(3, [[1.0] * 20])
    world.blocks.free.set()
    held()
    for answer in (*tokens, prompt):
        answer()
    assert world.blocks.passes[1:] == [[5, 8], [5, 8], [4]]


def test_a_pass_has_one_step_of_a_session(world: World) -> None:
    held = world.hold()
    steps = [world.submit(1, [[1.0, 1.0]], [start]) for start in (0, 2, 4)]
    world.blocks.free.set()
    held()
    assert [sums(step())[-1] for step in steps] == [2, 4, 6]
    assert world.blocks.passes[1:] == [[2], [2], [2]]


def test_operations_come_before_their_step(world: World) -> None:
    world.submit(1, [[1, 2, 3], [10]])()
    fork = RowOperation(parents=(0, 0), truncate_to=(3, 2))
    assert sums(world.submit(1, [[4], [5]], [3, 2], operation=fork)()) == [10, 8]
    world.engine.apply(name(1), RowOperation(truncate_to=(1, 1)))
    assert sums(world.submit(1, [[1], [2]], [1, 1])()) == [2, 3]


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
        broken.setattr(world.engine, "_compute", lambda *_: 1 / 0)
        error = world.submit(1, [[1.0]])().error
    assert isinstance(error, SessionError) and error.session == name(1)
    assert world.engine.alive
    assert sums(world.submit(2, [[2.0]])()) == [2]


def test_a_small_output_does_not_keep_its_whole_pass_alive(world: World) -> None:
    held = world.hold()
    small, large = world.submit(1, [[1.0]]), world.submit(2, [[1.0] * 30])
    world.blocks.free.set()
    held()
    assert world.blocks.passes[-1] == [1, 30] or large().output is not None
    output = small().output
    assert output is not None
    assert output.untyped_storage().nbytes() <= 2 * output.nbytes


def test_counters(world: World) -> None:
    world.submit(1, [[1.0] * 5])()
    world.submit(1, [[1.0]], [5])()
    stats = world.engine.stats()
    assert (stats.passes, stats.jobs, stats.failed_jobs) == (2, 2, 0)
    assert (stats.decode_tokens, stats.prefill_tokens) == (1, 5)
    assert stats.busy_s > 0
    held = world.hold()
    world.submit(1, [[1.0] * 3], [6])
    assert (world.engine.stats().waiting_jobs, world.engine.stats().waiting_tokens) == (1, 3)
    world.blocks.free.set()
    held()


def test_stop_ends_the_thread_and_drops_what_waits(world: World) -> None:
    held = world.hold()
    world.submit(1, [[1.0]])
    assert not world.engine.stop(0.01)
    world.blocks.free.set()
    assert world.engine.stop(PATIENCE_S)
    held()
    assert world.blocks.passes == [[1]]
    assert not any(thread.name == "swarm-engine" for thread in threading.enumerate())
