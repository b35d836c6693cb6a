"""Steps that are computed in several passes: cut for each pass, put together afterwards."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from swarm.scheduling.cost_model import PassSize, tokens_after
from swarm.server.engine_jobs import EngineJob, EngineResult


class WaitingJob:
    """A job in the engine's queue, and what of it is done; the planner's `Work`."""

    def __init__(self, job: EngineJob, submitted: float) -> None:
        self.job = job
        self.submitted = submitted
        """When it came, or its last part was done (the engine's clock, seconds)."""
        self.done = 0
        """Tokens that are computed or in the pass that runs."""
        self.dropped = False
        """Cancelled or failed: nothing of it is wanted any more."""
        self._parts: list[EngineResult] = []
        rows = max(1, sum(count > 0 for count in job.counts))
        self._held = sum(s for s, c in zip(job.starts, job.counts, strict=False) if c) / rows
        self._rows = rows

    @property
    def left(self) -> int:
        return self.job.tokens - self.done

    @property
    def held(self) -> float:
        return self._held + self.done / self._rows

    def take(self, tokens: int) -> EngineJob:
        """The next `tokens` tokens as a job of their own."""
        first, self.done = self.done, self.done + tokens
        if first == 0 and not self.left:
            return self.job
        return _part(self.job, first, self.done)

    def finished(self, result: EngineResult, now: float) -> EngineResult | None:
        """One part's result; that of the whole job, if it was the last or failed."""
        self.submitted = now
        if self.dropped:
            return None
        self._parts.append(result)
        if result.error is None and self.left:
            return None
        self.dropped = result.error is not None
        if len(self._parts) == 1:
            return replace(result, job=self.job)
        outputs = [part.output for part in self._parts if part.output is not None]
        return EngineResult(
            self.job,
            torch.cat(outputs) if result.error is None else None,
            result.error,
            sum(part.compute_ms for part in self._parts),
            self._parts[0].queue_ms,
        )


def pass_size(jobs: Sequence[EngineJob]) -> PassSize:
    """What the cost model learns a pass by."""
    size = PassSize()
    for job in jobs:
        for start, count in zip(job.starts, job.counts, strict=True):
            size += tokens_after(start, count)
    return size


def _part(job: EngineJob, first: int, end: int) -> EngineJob:
    """The tokens `first` to `end` of a job, in its packed order; they begin with the operation
    if they begin the job."""
    starts, counts, before = [], [], 0
    for start, count in zip(job.starts, job.counts, strict=True):
        begin = min(max(first - before, 0), count)
        starts.append(start + begin)
        counts.append(max(0, min(end - before, count) - begin))
        before += count
    return replace(
        job,
        operation=job.operation if first == 0 else None,
        starts=tuple(starts),
        counts=tuple(counts),
        position_ids=job.position_ids[first:end],
        hidden=job.hidden[first:end],
    )
