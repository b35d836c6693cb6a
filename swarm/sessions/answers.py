"""What a hop makes of a finished pass: the next hop's step or the client's output; and keeps."""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.backup import Backup
from swarm.sessions.events import Forward, PassDone
from swarm.sessions.messages import (
    MAX_UNANSWERED,
    Grant,
    Output,
    Replay,
    Step,
    Want,
)
from swarm.sessions.rules import Takes, emitted, taken, wanted
from swarm.spans import PeerId

Trim: TypeAlias = Callable[[Any, Takes], Any]
"""`(output, rows)`: the output of those tokens alone."""


def answer(
    step: Step,
    done: PassDone,
    service_class: ServiceClass,
    grant: Grant,
    hop: int,
    trim: Trim | None = None,
) -> Forward:
    """The step for the next hop; at the last hop, or where a refill ends, an output.

    `service_class`: the step's, and so that of its answer. `trim`: makes of an output what goes on
    of it, so that no more than that is kept.
    """
    takes = emitted(step, hop)
    refilled = bool(step.emit_from) and hop == step.emit_hop
    ends = hop + 1 == len(grant.hops) or (refilled and not any(take for _, take in takes))
    if ends:
        takes = wanted(takes, step.want)
    starts = tuple(start + skip for start, (skip, _) in zip(step.starts, takes, strict=True))
    counts = tuple(take for _, take in takes)
    rows = None if counts == step.counts else takes
    payload, size_bytes = (done.output, done.output_bytes) if any(counts) else (None, 0)
    if trim is not None and payload is not None and rows is not None:
        payload, rows = trim(payload, rows), None
        size_bytes = size_bytes * sum(counts) // sum(step.counts)
    if ends:
        output = Output(
            session=step.session,
            epoch=step.epoch,
            seq=step.seq,
            starts=starts,
            counts=counts,
            tensors=(),
            compute_ms=done.compute_ms,
            queue_ms=done.queue_ms,
        )
        client = PeerId(grant.client)
        return Forward(client, output, payload, rows, service_class, size_bytes=size_bytes)
    if refilled:
        # A row that lies below emit_from altogether goes on where the next hop stands.
        starts = tuple(map(max, starts, step.emit_from))
    passed = msgspec.structs.replace(
        step,
        starts=starts,
        counts=counts,
        position_ids=taken(step.position_ids, step.counts, takes),
        tensors=(),
    )
    following = PeerId(grant.hops[hop + 1].peer)
    return Forward(following, passed, payload, rows, service_class, size_bytes=size_bytes)


def replayed(replay: Replay, backup: Backup, to: PeerId) -> Forward | None:
    """The step that `replay` asks for; None: the backup does not have all of it."""
    if len(replay.starts) != len(replay.counts):
        return None
    found = backup.read(replay.starts, replay.counts)
    if found is None:
        return None
    position_ids, parts = found
    step = Step(
        session=replay.session,
        epoch=replay.epoch,
        seq=replay.seq,
        starts=replay.starts,
        counts=replay.counts,
        position_ids=position_ids,
        emit_from=replay.emit_from,
        want=Want.NONE,
        tensors=(),
        emit_hop=replay.emit_hop,
        horizon=replay.horizon,
    )
    return Forward(to, step, service_class=ServiceClass.REPAIR, parts=parts)


MAX_KEPT_TOKENS = 4096
MAX_RESENDS = 3
"""How often an answer is sent again for duplicates: a small frame must not buy megabytes."""
MAX_GAPS = 16
"""How often a gap at one step is filled; each step that was under way behind it tells of it."""


class KeptAnswers:
    """The newest answers of an epoch, to be sent again: the last, and as many before it as have
    `MAX_KEPT_TOKENS` with it. All can be dropped; who asks for them then has to repair."""

    def __init__(self) -> None:
        self.next_seq = 0
        """Of the step that will be answered next."""
        self.size_bytes = 0
        """Of the payloads, but for those that a replay takes from a backup."""
        self._answers: deque[Forward] = deque()
        self._tokens = 0
        self._resent: Counter[int] = Counter()
        """How often each step's answer was asked for again, by a duplicate or as the first of a
        gap; only of the steps that are kept."""

    def clear(self) -> None:
        """Another epoch begins."""
        self.next_seq = 0
        self.drop()

    def drop(self) -> None:
        """Nothing is kept any more; the numbers go on."""
        self.size_bytes = self._tokens = 0
        self._answers.clear()
        self._resent.clear()

    def keep(self, forward: Forward) -> None:
        """The answer of the step that is next."""
        self.next_seq = _seq(forward) + 1
        self._answers.append(forward)
        self._tokens += _tokens(forward)
        self.size_bytes += forward.size_bytes
        while len(self._answers) > 1 and (
            len(self._answers) > MAX_UNANSWERED or self._tokens > MAX_KEPT_TOKENS
        ):
            dropped = self._answers.popleft()
            self._tokens -= _tokens(dropped)
            self.size_bytes -= dropped.size_bytes
            del self._resent[_seq(dropped)]

    def again(self, seq: int) -> list[Forward]:
        """The answer to step `seq`, if it is kept and was not asked for too often."""
        found = [forward for forward in self._answers if _seq(forward) == seq]
        return found if found and self._counts(seq, MAX_RESENDS) else []

    def since(self, seq: int) -> list[Forward] | None:
        """All answers from step `seq` on; None: the first of them are not kept any more, or were
        asked for too often."""
        if seq >= self.next_seq:
            return []
        lost = [forward for forward in self._answers if _seq(forward) >= seq]
        found = lost and _seq(lost[0]) == seq
        return lost if found and self._counts(seq, MAX_GAPS) else None

    def _counts(self, seq: int, most: int) -> bool:
        self._resent[seq] += 1
        return self._resent[seq] <= most


def _seq(forward: Forward) -> int:
    assert isinstance(forward.message, Step | Output)
    return forward.message.seq


def _tokens(forward: Forward) -> int:
    assert isinstance(forward.message, Step | Output)
    return sum(forward.message.counts)
