"""The client repairs a session: fence all hops, align what they hold, refill what is missing."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from swarm.sessions.answers import replayed
from swarm.sessions.backup import Backup
from swarm.sessions.events import Forward, Instruction
from swarm.sessions.messages import (
    Fence,
    Grant,
    Holds,
    Output,
    Replay,
    RowOperation,
    SignedGrant,
)
from swarm.sessions.repair import CLIENT, Applied, Refill, plan_repair
from swarm.sessions.rules import Lengths, added
from swarm.spans import PeerId

REFILL_TOKENS = 512
"""Most tokens in one refilling step."""


@dataclass(frozen=True)
class _Frame:
    """One step of a refill; `seq` counts from 0 in each refill."""

    refill: Refill
    seq: int
    starts: Lengths
    counts: Lengths


class Rerouting:
    """Three rounds; in each, the client waits for every answer before it goes on.

    1. Fence without operation: every hop drops what is under way and says what it holds.
    2. Fence with operations: hops apply the forks that they missed and drop what is too much.
    3. Refills, one after the other, `window` steps at a time; the hop that ends a refill
       acknowledges each of its steps to the client.

    Afterwards every hop holds `target`, and `epoch` is the one to go on with.
    """

    def __init__(
        self,
        grant: Grant,
        signed: SignedGrant | None,
        epoch: int,
        target: Lengths,
        operations: list[Applied],
        inputs: Backup,
        window: int,
    ) -> None:
        self.grant = grant
        self.epoch = epoch
        self.finished = False
        self.heard = False
        """An answer came that it waited for; reset by who has noticed."""
        self.laggard: PeerId | None = None
        """The last hop that has more than `target`, once all have said what they hold: a step was
        there, and did not get farther. The first hop if none has more."""
        self._signed = signed
        self._target = target
        self._operations = tuple(operations)
        self._inputs = inputs
        self._window = window
        self._holds: dict[int, Holds] = {}
        self._refills: deque[Refill] | None = None
        """None: not planned yet."""
        self._frames: Iterator[_Frame] = iter(())
        self._horizon = 0
        self._unanswered: deque[_Frame] = deque()

    def start(self) -> list[Instruction]:
        return self._fence((None,) * len(self.grant.hops))

    def source_failed(self, sender: PeerId, holds: Holds) -> bool:
        """Whether the hop that refills others says that it has lost its backup."""
        if not self._unanswered or holds.epoch != self.epoch or holds.backup_from is not None:
            return False
        source = self._unanswered[0].refill.source
        return source == holds.hop and self.grant.hops[source].peer == sender

    @property
    def silent(self) -> PeerId | None:
        """A hop that has not answered its fence."""
        for index, hop in enumerate(self.grant.hops):
            if index not in self._holds:
                return PeerId(hop.peer)
        return None

    def on_holds(self, sender: PeerId, holds: Holds) -> list[Instruction]:
        """Raises SessionLostError if a hop claims to hold what cannot be."""
        hops = self.grant.hops
        if self.finished or holds.epoch != self.epoch or holds.hop >= len(hops):
            return []
        if hops[holds.hop].peer != sender or len(self._holds) == len(hops):
            return []
        self.heard = self.heard or holds.hop not in self._holds
        self._holds[holds.hop] = holds
        if len(self._holds) < len(hops):
            return []
        if self._refills is None:
            answers = tuple(self._holds[hop] for hop in range(len(hops)))
            further = [index for index, one in enumerate(answers) if _has_more(one, self._target)]
            self.laggard = PeerId(hops[max(further, default=0)].peer)
            plan = plan_repair(answers, self._operations, self._target)
            self._refills = deque(plan.refills)
            return self._fence(plan.operations)
        return self._next_refill()

    def on_output(self, sender: PeerId, output: Output) -> list[Instruction]:
        """An acknowledgement of the oldest unanswered refilling step; others are ignored."""
        if not self._unanswered or output.epoch != self.epoch:
            return []
        oldest = self._unanswered[0]
        if oldest.seq != output.seq or self.grant.hops[oldest.refill.last].peer != sender:
            return []
        self._unanswered.popleft()
        self.heard = True
        return self._push_frames()

    def _fence(self, operations: tuple[RowOperation | None, ...]) -> list[Instruction]:
        self.epoch += 1
        self._holds.clear()
        return [
            Forward(
                PeerId(hop.peer),
                Fence(self.grant.session, self.epoch, self._signed, index, operation),
            )
            for index, (hop, operation) in enumerate(zip(self.grant.hops, operations, strict=True))
        ]

    def _next_refill(self) -> list[Instruction]:
        assert self._refills is not None
        if not self._refills:
            self.finished = True
            return []
        everything = self._inputs.read((0,) * len(self._target), self._target)
        self._horizon = max(everything[0], default=0) if everything else 0
        self._frames = self._cut(self._refills.popleft())
        return self._push_frames()

    def _cut(self, refill: Refill) -> Iterator[_Frame]:
        starts, seq = refill.starts, 0
        while starts != self._target:
            room, counts = REFILL_TOKENS, []
            for start, target in zip(starts, self._target, strict=True):
                counts.append(min(room, target - start))
                room -= counts[-1]
            yield _Frame(refill, seq, starts, tuple(counts))
            starts, seq = added(starts, tuple(counts)), seq + 1

    def _push_frames(self) -> list[Instruction]:
        instructions: list[Instruction] = []
        while len(self._unanswered) < self._window:
            frame = next(self._frames, None)
            if frame is None:
                break
            self._unanswered.append(frame)
            instructions.append(self._push(frame))
        return instructions if self._unanswered else self._next_refill()

    def _push(self, frame: _Frame) -> Forward:
        session, refill = self.grant.session, frame.refill
        replay = Replay(
            session=session,
            epoch=self.epoch,
            seq=frame.seq,
            starts=frame.starts,
            counts=frame.counts,
            emit_from=self._target,
            emit_hop=refill.last,
            horizon=self._horizon,
        )
        if refill.source != CLIENT:
            return Forward(PeerId(self.grant.hops[refill.source].peer), replay)
        step = replayed(replay, self._inputs, PeerId(self.grant.hops[0].peer))
        assert step is not None, "the client keeps all its inputs, or it cannot be rerouted"
        return step


def _has_more(holds: Holds, target: Lengths) -> bool:
    return len(holds.held) == len(target) and any(map(int.__gt__, holds.held, target))
