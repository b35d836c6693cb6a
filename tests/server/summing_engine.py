"""An engine over blocks that sum up each row, and that a test can hold and let go."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

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


@contextmanager
def running_engine() -> Iterator[World]:
    """With room for sessions 0 to 3; it must stop at the end."""
    blocks = SummingBlocks()
    made = World(blocks, PagedCache([(1, 1, 1)], 512, page_tokens=4))
    made.engine = Engine(blocks, made.cache, made.on_results, max_pass_tokens=8)
    made.engine.start()
    for session in range(4):
        made.engine.reserve(name(session), 2, 32)
    yield made
    blocks.free.set()
    assert made.engine.stop(PATIENCE_S)


def name(number: int) -> SessionId:
    return SessionId(bytes([number]) * 16)


def sums(result: EngineResult) -> list[float]:
    assert result.error is None
    assert result.output is not None
    return [float(value) for value in result.output.view(-1)]
