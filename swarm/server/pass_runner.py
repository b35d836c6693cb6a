"""Passes over a slice and its cache: checked, computed together, each job with an end of its own.

Everything here is for the engine's thread alone. What is wrong with a job, or with the cache of its
session, ends in that job's error; others in the pass do not notice.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from swarm.errors import NotFiniteError, SessionError, StepRejectedError, SwarmError
from swarm.models.packed_attention import KVStore, PassRow
from swarm.server.activations import own_copy
from swarm.server.engine_jobs import EngineJob
from swarm.server.kv_cache import PagedCache
from swarm.sessions.messages import RowOperation
from swarm.spans import SessionId, Span

logger = logging.getLogger("swarm.server.engine")

_Ready = tuple[EngineJob, list[PassRow]]
"""A sound job, and its rows that have new tokens."""


class Blocks(Protocol):
    """What the engine needs of a `BlockSlice`."""

    @property
    def span(self) -> Span: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...

    def part(self, span: Span) -> "Blocks": ...

    def forward(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        rows: Sequence[PassRow],
        kv: KVStore,
    ) -> torch.Tensor: ...


@dataclass(slots=True)
class Outcome:
    """What became of a pass; jobs are named by their `id`."""

    computed: list[EngineJob] = field(default_factory=list)
    """Those that were sound, in their order; computing them may have failed."""
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    """`[tokens, hidden_size]` of each, on the CPU."""
    errors: dict[int, SwarmError] = field(default_factory=dict)


class PassRunner:
    """Computes jobs, and keeps the cache of each session as its client believes it to be."""

    def __init__(self, blocks: Blocks, cache: PagedCache) -> None:
        self._blocks = blocks
        self._cache = cache
        self._faults: dict[SessionId, SwarmError] = {}
        """Why a session's cache is not what its client believes."""

    # ---- the caches of sessions

    def reserve(self, session: SessionId, rows: int, length: int) -> None:
        """Set cache aside; without room the session's jobs fail."""
        self._obey(session, lambda: self._cache.reserve(session, rows, length))

    def apply(self, session: SessionId, operation: RowOperation) -> None:
        """Fork and cut a session's rows; where that fails its jobs do."""
        self._obey(session, lambda: self._apply(session, operation))

    def release(self, session: SessionId) -> None:
        """Give its cache back; unknown sessions are fine."""
        self._obey(session, lambda: self._cache.release(session))
        self._faults.pop(session, None)

    def _obey(self, session: SessionId, command: Callable[[], object]) -> None:
        try:
            command()
        except SwarmError as error:
            logger.warning("session %s: %s", session.hex()[:8], error)
            self._faults[session] = error
        except Exception as error:
            # The edge of the thread's work: one session fails, the engine goes on.
            logger.exception("the cache of session %s", session.hex()[:8])
            fault = f"its cache failed: {type(error).__name__}: {error}; open it elsewhere"
            self._faults[session] = SessionError(fault, session=session)

    def _apply(self, session: SessionId, operation: RowOperation) -> None:
        self._cache.apply(session, operation.parents, operation.truncate_to)

    # ---- a pass

    def run(self, jobs: Sequence[EngineJob]) -> Outcome:
        """Compute `jobs`, one pass for all over the same blocks; at most one of each session."""
        outcome = Outcome()
        ready: dict[Span, list[_Ready]] = {}
        for job in jobs:
            try:
                rows = self._prepare(job)
            except Exception as error:
                outcome.errors[id(job)] = self._explain(job, error)
            else:
                outcome.computed.append(job)
                ready.setdefault(job.blocks, []).append((job, rows))
        for same in ready.values():
            self._compute(same, outcome)
        return outcome

    def _prepare(self, job: EngineJob) -> list[PassRow]:
        """Check a job against its session's cache, apply its operation, and name its rows."""
        fault = self._faults.get(job.session)
        if fault is not None:
            raise fault
        tokens = sum(job.counts)
        expected = (tokens, self._blocks.hidden_size)
        if tuple(job.hidden.shape) != expected or job.tokens != tokens:
            raise StepRejectedError(
                f"{job.tokens} positions and activations of shape {tuple(job.hidden.shape)} "
                f"where {expected} was announced",
                session=job.session,
                blocks=str(self._blocks.span),
            )
        if job.operation is not None:
            self._apply(job.session, job.operation)
        rows = [
            PassRow(self._cache.row(job.session, row), start, count, job.horizon)
            for row, (start, count) in enumerate(zip(job.starts, job.counts, strict=True))
            if count
        ]
        for row in rows:
            self._cache.check(row)
        return rows

    def _compute(self, ready: list[_Ready], outcome: Outcome) -> None:
        """Run jobs over the same blocks in one pass; if it fails, each alone, so that only the
        guilty one does."""
        if not any(rows for _, rows in ready):
            outcome.outputs |= {id(job): job.hidden for job, _ in ready}
            return
        try:
            output = self._forward(ready)
        except Exception as error:
            if len(ready) > 1:
                for each in ready:
                    self._compute([each], outcome)
                return
            job = ready[0][0]
            outcome.errors[id(job)] = self._explain(job, error)
            return
        parts = torch.split(output, [job.tokens for job, _ in ready])
        finite = bool(torch.isfinite(output.sum()))
        for (job, _), part in zip(ready, parts, strict=True):
            if finite or torch.isfinite(part).all():
                outcome.outputs[id(job)] = own_copy(part)
            else:
                outcome.errors[id(job)] = self._not_finite(job)

    def _forward(self, ready: list[_Ready]) -> torch.Tensor:
        device, dtype = self._blocks.device, self._blocks.dtype
        parts = [job.hidden.to(device, dtype) for job, _ in ready]
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        positions = [position for job, _ in ready for position in job.position_ids]
        rows = [row for _, rows in ready for row in rows]
        return self._blocks.part(ready[0][0].blocks).forward(
            hidden, torch.tensor(positions, device=device), rows, self._cache
        )

    # ---- what is wrong, in words

    def _explain(self, job: EngineJob, error: Exception) -> SwarmError:
        if isinstance(error, SwarmError):
            return error
        logger.error("a pass over blocks %s failed", self._blocks.span, exc_info=error)
        return SessionError(
            f"computing {job.tokens} tokens failed: {type(error).__name__}: {error}; open the "
            "session again on other servers",
            session=job.session,
            blocks=str(self._blocks.span),
        )

    def _not_finite(self, job: EngineJob) -> SessionError:
        span = str(self._blocks.span)
        if not torch.isfinite(job.hidden).all():
            return StepRejectedError(
                "the activations that came in are not finite", session=job.session, blocks=span
            )
        return NotFiniteError(
            f"blocks {span} made NaN or infinity from sound input; another dtype may help",
            session=job.session,
            blocks=span,
        )
