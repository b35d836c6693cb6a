"""What the engine counts of its passes."""

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.cost_model import PROMPT_TOKENS, CostModel, tokens_after
from swarm.server.engine_jobs import EngineJob, EngineStats

_WEIGHT = 0.1
"""Of the newest pass, in moving averages."""


@dataclass(frozen=True, slots=True)
class FinishedPass:
    """A pass whose results are known."""

    batch: Sequence[EngineJob]
    computed: Sequence[EngineJob]
    """Without those that failed before."""
    waits_ms: Sequence[float]
    """Of each job of the batch, from its submission, or from the pass that computed its last part,
    to the beginning of this one."""
    compute_s: float
    failed: int


class EngineCounters:
    """Told of each pass, under the engine's lock."""

    def __init__(self) -> None:
        self._passes = self._jobs = self._failed_jobs = 0
        self._decode_tokens = self._prefill_tokens = 0
        self._busy_s = self._queue_s = self._recent_queue_ms = 0.0
        self._decode_queue_ms = self._prefill_queue_ms = 0.0
        self._decode_share_s = 0.0

    def count(self, done: FinishedPass) -> None:
        self._passes += 1
        self._jobs += len(done.batch)
        self._failed_jobs += done.failed
        self._busy_s += done.compute_s
        self._queue_s += sum(done.waits_ms) / 1e3
        decode: list[tuple[int, float]] = []
        prefill: list[tuple[int, float]] = []
        for job, wait_ms in zip(done.batch, done.waits_ms, strict=True):
            (decode if _is_decode(job) else prefill).append((job.tokens, wait_ms))
        decode_tokens = sum(tokens for tokens, _ in decode)
        prefill_tokens = sum(tokens for tokens, _ in prefill)
        self._decode_tokens += decode_tokens
        self._prefill_tokens += prefill_tokens
        part = decode_tokens / max(1, decode_tokens + prefill_tokens)
        self._decode_share_s += part * done.compute_s
        self._recent_queue_ms = _moved(self._recent_queue_ms, done.waits_ms)
        self._decode_queue_ms = _moved(self._decode_queue_ms, [wait for _, wait in decode])
        self._prefill_queue_ms = _moved(self._prefill_queue_ms, [wait for _, wait in prefill])

    def stats(self, waiting_jobs: int, waiting_tokens: int, costs: CostModel) -> EngineStats:
        return EngineStats(
            passes=self._passes,
            jobs=self._jobs,
            failed_jobs=self._failed_jobs,
            decode_tokens=self._decode_tokens,
            prefill_tokens=self._prefill_tokens,
            busy_s=self._busy_s,
            queue_s=self._queue_s,
            recent_queue_ms=self._recent_queue_ms,
            waiting_jobs=waiting_jobs,
            waiting_tokens=waiting_tokens,
            decode_queue_ms=self._decode_queue_ms,
            prefill_queue_ms=self._prefill_queue_ms,
            decode_share=self._decode_share_s / self._busy_s if self._busy_s else 0.0,
            decode_s=costs.decode_s(1),
            prefill_tokens_per_s=PROMPT_TOKENS / costs.seconds(tokens_after(0, PROMPT_TOKENS)),
        )


def _is_decode(job: EngineJob) -> bool:
    return job.service_class <= ServiceClass.DECODE


def _moved(average: float, values: Sequence[float]) -> float:
    if not values:
        return average
    return average + _WEIGHT * (sum(values) / len(values) - average)
