"""The thread that computes: one pass at a time, many sessions in each pass.

Its boundary is messages: jobs go in from any thread, results come out as one callback a pass. What
joins a pass is decided when the engine is free and not before: decode rows that are ready, then
prefill, each as long as the pass's token budget lasts, at most one step of each session.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

import torch

from swarm.errors import SessionError
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.cost_model import CostModel
from swarm.scheduling.decode_groups import DecodeGroups
from swarm.scheduling.fair_queue import Entry, FairQueue, own_group
from swarm.scheduling.pass_planner import PassPlanner
from swarm.scheduling.service_counters import Path
from swarm.server.engine_counters import EngineCounters, FinishedPass
from swarm.server.engine_jobs import EngineJob, EngineResult, EngineStats
from swarm.server.engine_parts import WaitingJob, pass_size
from swarm.server.kv_cache import PagedCache
from swarm.server.pass_runner import Blocks, PassRunner
from swarm.spans import SessionId

logger = logging.getLogger("swarm.server.engine")

DEFAULT_MAX_PASS_TOKENS = 512
_SETTLE_S = 0.002
"""An engine that has been idle for so long counts its last pass, if nothing came before."""


class Engine:
    """Runs a slice over its cache, in a thread of its own.

    `on_results` is called in that thread, once a pass, with the results of all its jobs; it must
    only hand them over (`loop.call_soon_threadsafe`). All other methods may be called from any
    thread, return at once, and take effect between two passes, in the order of the calls.
    """

    def __init__(
        self,
        blocks: Blocks,
        cache: PagedCache,
        on_results: Callable[[list[EngineResult]], None],
        *,
        max_pass_tokens: int = DEFAULT_MAX_PASS_TOKENS,
        threads: int | None = None,
        costs: CostModel | None = None,
        group_of: Callable[[str], Path] = own_group,
    ) -> None:
        """`max_pass_tokens`: the first decode step always joins a pass, further ones as long as
        all of them have at most so many tokens; the same holds for all other steps, so neither
        kind shuts the other out; longer steps that are not decode take several passes.
        `threads`: how many torch may use in a pass; None leaves torch's own setting. `costs`: a
        first guess of what passes cost. `group_of`: the group of a client (see `FairQueue`)."""
        self._blocks_hosted = len(blocks.span)
        self._runner = PassRunner(blocks, cache)
        self._on_results = on_results
        self._threads = threads
        self._changed = threading.Condition(threading.Lock())
        self._queue: FairQueue[WaitingJob] = FairQueue(group_of=group_of)
        self._costs = costs or CostModel(0.01, 1000.0)
        self._planner = PassPlanner(self._queue, self._costs, max_tokens=max_pass_tokens)
        self._taken: dict[int, tuple[WaitingJob, Entry[WaitingJob]]] = {}
        """Whose part each job of the running pass is, by the id of that job."""
        self._commands: list[Callable[[], None]] = []
        self._stopping = False
        self._groups = DecodeGroups(self._costs.decode_s)
        self._counters = EngineCounters()
        self._last_pass: FinishedPass | None = None
        """A pass whose results are handed over, and which is not counted and learnt from yet."""
        self._thread = threading.Thread(target=self._run, name="swarm-engine", daemon=True)

    # ---- any thread

    def start(self) -> None:
        self._thread.start()

    def reserve(self, session: SessionId, rows: int, length: int) -> None:
        """Set cache aside for a session that was admitted. If there is no room all the same, its
        jobs fail with `CacheFullError`."""
        self._command(partial(self._runner.reserve, session, rows, length))

    def submit(self, job: EngineJob) -> None:
        """Queue a step; a session's own steps run in the order of their submission."""
        now = time.perf_counter()
        entry = Entry(WaitingJob(job, now), job.service_class, job.client, job.session, job.tokens)
        with self._changed:
            self._queue.push(entry, now)
            self._changed.notify()

    def cancel(self, session: SessionId) -> None:
        """Drop the session's waiting jobs without results; their operations are still applied.

        A pass that is running is not disturbed: its results come.
        """
        with self._changed:
            for entry in self._queue.remove_session(session):
                waiting, operation = entry.item, entry.item.job.operation
                waiting.dropped = True
                if operation is not None and not waiting.done:
                    self._commands.append(partial(self._runner.apply, session, operation))
            self._changed.notify()

    def release(self, session: SessionId) -> None:
        """Drop the session's waiting jobs and give its cache back; unknown sessions are fine."""
        with self._changed:
            for entry in self._queue.remove_session(session):
                entry.item.dropped = True
            self._commands.append(partial(self._release, session))
            self._changed.notify()

    def stop(self, timeout_s: float) -> bool:
        """Finish the running pass, drop what waits, end the thread. False: still busy by then."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs; once started, only `stop` should end it."""
        return self._thread.is_alive()

    def stats(self) -> EngineStats:
        with self._changed:
            self._settle()
            tokens = sum(self._queue.cost(each) for each in ServiceClass)
            return self._counters.stats(len(self._queue), tokens, self._costs)

    # ---- the engine's thread

    def _command(self, command: Callable[[], None]) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while True:
                with self._changed:
                    self._await_work()
                    self._settle()
                    while (wait_s := self._gather_s()) > 0:
                        self._changed.wait(wait_s)
                    if self._stopping:
                        return
                    commands, self._commands = self._commands, []
                    batch = self._take_batch()
                for command in commands:
                    command()
                if batch:
                    try:
                        self._pass(batch)
                    except Exception as error:
                        # The edge of the thread's work: this pass's sessions fail, others go on.
                        logger.exception("a pass was not finished")
                        self._hand_over([self._unfinished(job, error) for job, _ in batch])

    def _await_work(self) -> None:
        while not (self._commands or self._queue or self._stopping):
            if self._last_pass is None:
                self._changed.wait()
            elif not self._changed.wait(_SETTLE_S):
                self._settle()

    def _settle(self) -> None:
        """Count the last pass, and learn from it. Its results went to the loop before: this takes
        long beside a small pass, and keeps the loop's thread from sending them on."""
        last, self._last_pass = self._last_pass, None
        if last is None:
            return
        self._counters.count(last)
        spans = {job.blocks for job in last.computed}
        if len(spans) == 1:
            part = len(spans.pop()) / self._blocks_hosted
            self._costs.learn(pass_size(last.computed), last.compute_s / part)

    def _gather_s(self) -> float:
        """How long to wait for more decode rows; other work is begun at once."""
        if self._stopping or self._commands or not self._queue:
            return 0.0
        if sum(self._queue.cost(each) for each in ServiceClass if each > ServiceClass.DECODE):
            return 0.0
        now = time.perf_counter()
        return self._groups.wait_s(
            len(self._queue), now - self._queue.since(ServiceClass.DECODE), now
        )

    def _take_batch(self) -> list[tuple[EngineJob, float]]:
        self._taken.clear()
        batch: list[tuple[EngineJob, float]] = []
        now = time.perf_counter()
        for share in self._planner.plan(now, self._groups.most_steps(now)).shares:
            waiting = share.entry.item
            job = waiting.take(share.tokens)
            self._taken[id(job)] = (waiting, share.entry)
            batch.append((job, waiting.submitted))
        return batch

    def _whole(self, results: list[EngineResult]) -> list[EngineResult]:
        """The results of the jobs that are done with this pass; a job with a failed part is."""
        whole = []
        with self._changed:
            for result in results:
                waiting, entry = self._taken[id(result.job)]
                queued = waiting.left > 0 and not waiting.dropped
                done = waiting.finished(result, time.perf_counter())
                if done is not None:
                    whole.append(done)
                    if queued:
                        self._queue.finish(entry)
        return whole

    def _release(self, session: SessionId) -> None:
        self._runner.release(session)
        self._groups.session_ended(session)

    def _pass(self, batch: list[tuple[EngineJob, float]]) -> None:
        jobs = [job for job, _ in batch]
        began, processor_s = time.perf_counter(), time.thread_time()
        outcome = self._runner.run(jobs)
        compute_s = time.perf_counter() - began
        decoding = [job.session for job in jobs if job.service_class <= ServiceClass.DECODE]
        processor_s = time.thread_time() - processor_s
        self._groups.pass_ended(decoding, compute_s, processor_s, time.perf_counter())
        waits_ms = [(began - submitted) * 1e3 for _, submitted in batch]
        outputs, errors = outcome.outputs, outcome.errors
        results = [
            EngineResult(job, outputs.get(id(job)), errors.get(id(job)), compute_s * 1e3, wait)
            for job, wait in zip(jobs, waits_ms, strict=True)
        ]
        done = FinishedPass(jobs, outcome.computed, waits_ms, compute_s, len(errors))
        with self._changed:
            self._last_pass = done
        self._hand_over(results)

    def _hand_over(self, results: list[EngineResult]) -> None:
        try:
            if whole := self._whole(results):
                self._on_results(whole)
        except Exception:
            # Nobody listens any more, as when the loop is closed; the next pass must not suffer.
            logger.exception("the results of a pass could not be handed over")

    def _unfinished(self, job: EngineJob, error: Exception) -> EngineResult:
        fault = f"a pass failed: {type(error).__name__}: {error}; open the session elsewhere"
        return EngineResult(job, None, SessionError(fault, session=job.session), 0.0, 0.0)
