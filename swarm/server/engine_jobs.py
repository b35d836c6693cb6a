"""What goes into the engine and what comes out of it: plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from swarm.errors import SwarmError
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import RowOperation
from swarm.spans import SessionId, Span


@dataclass(frozen=True, slots=True, eq=False)
class EngineJob:
    """One step of one session.

    Row r's new tokens are for its slots `starts[r] .. starts[r] + counts[r] - 1`; `hidden` is
    `[sum(counts), hidden_size]` and `position_ids` has as many items, row 0's tokens first.
    """

    session: SessionId
    client: str
    """Who is charged."""
    epoch: int
    seq: int
    service_class: ServiceClass
    operation: RowOperation | None
    """Applied to the session's rows just before the pass."""
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    position_ids: Sequence[int]
    hidden: torch.Tensor
    """In any float dtype; the slice's own is cheapest."""
    blocks: Span
    """What the session's route uses of the slice."""
    horizon: int = 0
    """The last position of all tokens that the user ran at once; 0: that of this step."""
    owner: object = None
    """Whose result it is; a session that is opened again under its old id is another owner."""

    @property
    def tokens(self) -> int:
        return len(self.position_ids)


@dataclass(frozen=True, slots=True, eq=False)
class EngineResult:
    """What became of a job: its output, or why there is none."""

    job: EngineJob
    output: torch.Tensor | None
    """`[sum(counts), hidden_size]` in the slice's dtype, on the CPU; it does not keep the
    whole pass's output alive."""
    error: SwarmError | None
    """`StepRejectedError`, `SessionFullError`, `SessionLostError` or `NotFiniteError`; any other
    `SessionError` is a fault of this server."""
    compute_ms: float
    """Of the whole pass that the job was part of."""
    queue_ms: float
    """From the submission to the beginning of the pass."""


class SessionEngine(Protocol):
    """What the service needs of an `Engine`; its results come to `Service.on_results`."""

    def reserve(self, session: SessionId, rows: int, length: int) -> None: ...

    def submit(self, job: EngineJob) -> None: ...

    def cancel(self, session: SessionId) -> None: ...

    def release(self, session: SessionId) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the engine began, and what waits now."""

    passes: int
    jobs: int
    """One that takes several passes counts in each."""
    failed_jobs: int
    decode_tokens: int
    """Tokens of steps of the classes control and decode."""
    prefill_tokens: int
    """All others."""
    busy_s: float
    queue_s: float
    """Sum of the waits of all jobs."""
    recent_queue_ms: float
    """Moving average of a job's wait."""
    waiting_jobs: int
    waiting_tokens: int
    decode_queue_ms: float
    """Moving average of the waits of decode steps."""
    prefill_queue_ms: float
    """Of all others, pass by pass."""
    decode_share: float
    """Part of the busy time that decode took, by tokens within each pass."""
    decode_s: float
    """What a pass of one token is expected to take, by what was learnt of passes."""
    prefill_tokens_per_s: float
    """Likewise, in passes of 128 tokens without a context."""
