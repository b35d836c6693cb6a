"""An engine without a model or a thread: each token is answered by a sum over its row so far."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from swarm.errors import NotFiniteError, StepRejectedError, SwarmError
from swarm.server.engine_jobs import EngineJob, EngineResult
from swarm.sessions.messages import RowOperation
from swarm.spans import SessionId

PASS_S = 0.01


def answers(tokens: torch.Tensor) -> torch.Tensor:
    """What one hop makes of a row's tokens `[length, hidden_size]`: wrong K/V gives wrong sums."""
    return torch.cumsum(tokens, dim=0) + 1


@dataclass
class ToyEngine:
    """Keeps the books that a real one keeps; one job a pass, `PASS_S` each, in order."""

    on_results: Callable[[list[EngineResult]], None] | None = None
    rooms: dict[SessionId, tuple[int, int]] = field(default_factory=dict)
    """Reserved rows and length of each session."""
    rows: dict[SessionId, list[torch.Tensor]] = field(default_factory=dict)
    fault: SwarmError | None = None
    """What every pass ends in."""
    jobs: list[EngineJob] = field(default_factory=list)
    _queue: list[EngineJob] = field(default_factory=list)

    def reserve(self, session: SessionId, rows: int, length: int) -> None:
        assert session not in self.rooms
        self.rooms[session] = (rows, length)
        self.rows[session] = [torch.empty(0)] * rows

    def submit(self, job: EngineJob) -> None:
        self._queue.append(job)
        if len(self._queue) == 1:
            asyncio.get_running_loop().call_later(PASS_S, self._pass)

    def cancel(self, session: SessionId) -> None:
        for job in self._queue[1:]:
            if job.session == session:
                self._queue.remove(job)
                self._apply(session, job.operation)

    def release(self, session: SessionId) -> None:
        self._queue[1:] = [job for job in self._queue[1:] if job.session != session]
        self.rooms.pop(session, None)
        self.rows.pop(session, None)

    def _pass(self) -> None:
        job = self._queue.pop(0)
        if self._queue:
            asyncio.get_running_loop().call_later(PASS_S, self._pass)
        self.jobs.append(job)
        output, error = None, self.fault
        if error is None:
            try:
                output = self._compute(job)
            except SwarmError as raised:
                error = raised
        assert self.on_results is not None
        self.on_results([EngineResult(job, output, error, 1000 * PASS_S, 0.0)])

    def _apply(self, session: SessionId, operation: RowOperation | None) -> None:
        rows = self.rows.get(session)
        if rows is None or operation is None:
            return
        if operation.parents is not None:
            rows[:] = [rows[parent] for parent in operation.parents]
        for row, length in enumerate(operation.truncate_to or ()):
            rows[row] = rows[row][:length]

    def _compute(self, job: EngineJob) -> torch.Tensor:
        rows = self.rows.get(job.session)
        if rows is None:
            return job.hidden
        self._apply(job.session, job.operation)
        if not torch.isfinite(job.hidden).all():
            raise StepRejectedError("activations that are not finite")
        outputs = []
        for row, new in enumerate(torch.split(job.hidden, list(job.counts))):
            start = job.starts[row]
            assert len(rows[row]) == start, "the session's rules let a wrong start through"
            rows[row] = torch.cat([rows[row], new]) if start else new
            outputs.append(answers(rows[row])[start:])
        output = torch.cat(outputs)
        if not torch.isfinite(output).all():
            raise NotFiniteError("the toy engine overflowed")
        return output
