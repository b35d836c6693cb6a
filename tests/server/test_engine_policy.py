"""The engine's thread with passes on a virtual clock: shares, the bound, groups, and no convoy."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from swarm.models.packed_attention import KVStore, PassRow
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.client_groups import ClientGroups
from swarm.scheduling.cost_model import CostModel, PassSize
from swarm.scheduling.fair_queue import DEFAULT_POLICY, FairQueue, Policy, own_group
from swarm.scheduling.service_counters import Path
from swarm.server.engine import Engine
from swarm.server.engine_jobs import EngineJob, EngineResult
from swarm.server.kv_cache import PagedCache
from swarm.sessions.messages import RowOperation
from swarm.spans import SessionId, Span

PATIENCE_S = 60.0
DECODE, PREFILL = ServiceClass.DECODE, ServiceClass.PREFILL
CHUNK_TOKENS = 16


class Costs(CostModel):
    """What passes take, known from the beginning."""

    def __init__(self, fixed_s: float, per_token_s: float) -> None:
        super().__init__(fixed_s, 1 / per_token_s)
        self.fixed_s, self.per_token_s, self.per_context_s = fixed_s, per_token_s, 0.0

    def learn(self, size: PassSize, seconds: float) -> None:
        pass


class Workshop:
    """Blocks whose passes move the clock, and clients who ask again as soon as they are answered.

    The engine is held up before each pass until `free` is set.
    """

    span, hidden_size = Span(0, 1), 1
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, costs: Costs, group_of: Callable[[str], Path], max_tokens: int) -> None:
        self.now = 0.0
        self.costs = costs
        self.free = threading.Event()
        self.entered = threading.Semaphore(0)
        self.passes: list[tuple[float, float, list[EngineJob]]] = []
        """When each began and ended, and its jobs."""
        self.again = True
        self.enough = 0
        self.over = threading.Event()
        self.answered = threading.Semaphore(0)
        self.cache = PagedCache([(1, 1, 1)], 4096, page_tokens=16)
        self.engine = Engine(
            self,
            self.cache,
            self.on_results,
            costs=costs,
            group_of=group_of,
            max_pass_tokens=max_tokens,
        )

    def part(self, span: Span) -> "Workshop":
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
        self.began = self.now
        kv.begin(rows)
        self.now += self.costs.seconds(PassSize(len(hidden)))
        return hidden

    def on_results(self, results: list[EngineResult]) -> None:
        assert not [result.error for result in results if result.error]
        self.passes.append((self.began, self.now, [result.job for result in results]))
        if len(self.passes) >= self.enough:
            self.over.set()
        for result in results:
            self.answered.release()
            if self.again and not self.over.is_set():
                self.engine.submit(result.job)

    def submit(self, session: int, client: str, service_class: ServiceClass) -> None:
        tokens = 1 if service_class is DECODE else CHUNK_TOKENS
        name = SessionId(session.to_bytes(16, "big"))
        self.engine.reserve(name, 1, CHUNK_TOKENS)
        self.ask(name, client, service_class, tokens)

    def ask(
        self, session: SessionId, client: str, service_class: ServiceClass, tokens: int
    ) -> None:
        self.engine.submit(
            EngineJob(
                session=session,
                client=client,
                epoch=0,
                seq=0,
                service_class=service_class,
                operation=RowOperation(truncate_to=(0,)),
                starts=(0,),
                counts=(tokens,),
                position_ids=range(tokens),
                hidden=torch.zeros(tokens, 1),
                blocks=self.span,
            )
        )

    def run(self, passes: int) -> None:
        """Until so many are done; what still waits then is computed too, and does not count."""
        self.enough = passes
        self.free.set()
        assert self.over.wait(PATIENCE_S)


MakeWorkshop = Callable[..., Workshop]


@pytest.fixture
def workshop(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorkshop]:
    made: list[Workshop] = []

    def make(
        policy: Policy = DEFAULT_POLICY,
        costs: Costs | None = None,
        group_of: Callable[[str], Path] = own_group,
        max_tokens: int = 512,
    ) -> Workshop:
        clock = SimpleNamespace(perf_counter=lambda: one.now, thread_time=lambda: one.now)
        monkeypatch.setattr("swarm.server.engine.time", clock)
        monkeypatch.setattr("swarm.server.engine.FairQueue", partial(FairQueue, policy))
        one = Workshop(costs or Costs(0.05, 0.01), group_of, max_tokens)
        made.append(one)
        one.engine.start()
        return one

    yield make
    for one in made:
        one.again = False
        one.free.set()
        assert one.engine.stop(PATIENCE_S)


def saturate(workshop: Workshop, passes: int) -> None:
    """Eight sessions decode all the time, which takes longer than a pass's budget, beside one
    with prompts."""
    for session in range(8):
        workshop.submit(session, f"client-{session}", DECODE)
    workshop.submit(8, "prompter", PREFILL)
    workshop.run(passes)


def prompts(workshop: Workshop) -> list[tuple[float, float]]:
    """When each pass with a chunk began and ended."""
    return [
        (began, ended)
        for began, ended, jobs in workshop.passes[: workshop.enough]
        if any(job.service_class is PREFILL for job in jobs)
    ]


def test_a_chunk_waits_no_longer_than_the_bound_and_a_pass(workshop: MakeWorkshop) -> None:
    one = workshop(Policy(shares={}, longest_wait_s=1.0))
    saturate(one, 150)
    served = prompts(one)
    waits = [after[0] - before[1] for before, after in pairwise(served)]
    longest_pass_s = one.costs.seconds(PassSize(8 + CHUNK_TOKENS))
    assert len(waits) > 5
    assert 0.5 < max(waits) <= 1.0 + longest_pass_s


def test_prompts_get_their_share_of_a_saturated_engine(workshop: MakeWorkshop) -> None:
    one = workshop(Policy(longest_wait_s=None))
    saturate(one, 300)
    chunk_s = CHUNK_TOKENS * one.costs.per_token_s
    assert len(prompts(one)) * chunk_s / one.passes[299][1] == pytest.approx(0.25, abs=0.03)


def test_without_share_and_bound_they_starve(workshop: MakeWorkshop) -> None:
    one = workshop(Policy(shares={}, longest_wait_s=None))
    saturate(one, 150)
    assert len(prompts(one)) <= 1, "the first pass may begin before anybody decodes"


def received(workshop: Workshop) -> Counter[str]:
    """Chunks by the first word of the client's name, without the pass that came first."""
    jobs = [job for _, _, jobs in workshop.passes[1 : workshop.enough] for job in jobs]
    return Counter(job.client.split("-")[0] for job in jobs)


def test_sixteen_sessions_get_no_more_than_one(workshop: MakeWorkshop) -> None:
    one = workshop(max_tokens=CHUNK_TOKENS)
    for session in range(16):
        one.submit(session, "many", PREFILL)
    one.submit(16, "single", PREFILL)
    one.run(101)
    assert abs(received(one)["many"] - received(one)["single"]) <= 2


def test_a_crowd_of_one_prefix_gets_no_more_than_one_client(workshop: MakeWorkshop) -> None:
    groups = ClientGroups()
    one = workshop(group_of=groups, max_tokens=CHUNK_TOKENS)
    groups.learn("honest", "/ip4/203.0.113.1/tcp/1")
    for number in range(100):
        groups.learn(f"crowd-{number}", f"/ip4/198.51.100.{number}/tcp/1")
        one.submit(number, f"crowd-{number}", PREFILL)
    one.submit(100, "honest", PREFILL)
    one.run(201)
    assert abs(received(one)["crowd"] - received(one)["honest"]) <= 2


def test_a_convoy_is_cut_where_the_engine_is_idle_meanwhile(workshop: MakeWorkshop) -> None:
    """Sixteen sessions come together; the rest of the chain takes as long as three such engines."""
    one = workshop(costs=Costs(0.005, 0.004))
    one.again = False
    for session in range(17):
        one.engine.reserve(SessionId(session.to_bytes(16, "big")), 1, 1)
    largest = []
    for _ in range(60):
        before = len(one.passes)
        one.free.clear()
        one.ask(SessionId(bytes(16)), "first", DECODE, 1)
        assert one.entered.acquire(timeout=PATIENCE_S)
        for session in range(1, 17):
            one.ask(SessionId(session.to_bytes(16, "big")), f"client-{session}", DECODE, 1)
        one.free.set()
        for _ in range(17):
            assert one.answered.acquire(timeout=PATIENCE_S)
        largest.append(max(len(jobs) for _, _, jobs in one.passes[before:]))
        while one.entered.acquire(blocking=False):
            pass
        one.now += 3 * one.costs.seconds(PassSize(largest[-1]))
    assert largest[0] == 16
    assert largest[-1] < 9
