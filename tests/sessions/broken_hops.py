"""Hops that break one rule each: the model check must notice every one of them."""

from dataclasses import replace
from typing import Any

import msgspec

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.events import Compute, Forward, Instruction, PassDone
from swarm.sessions.hop import HopSession
from swarm.sessions.messages import Fence, RowOperation, Step
from swarm.sessions.rules import added, applied
from swarm.spans import PeerId


class IgnoresEpochOfPasses(HopSession):
    """Commits a pass although the epoch has risen since it began."""

    def _pass_done(self, done: PassDone) -> list[Instruction]:
        return super()._pass_done(replace(done, epoch=self.epoch))


class TruncatesOnDuplicates(HopSession):
    """Takes a repeated step for a rollback."""

    def _step(self, step: Step, payload: Any, sender: PeerId) -> list[Instruction]:
        if step.epoch == self.epoch and step.seq < self._next_seq and step.counts:
            self._passes.clear()
            self.held = step.starts
            self._next_seq = step.seq
            self._engine_told = not self._engine_rows
        return super()._step(step, payload, sender)


class AppliesOperationsTwice(HopSession):
    """Applies a fence's operation again when the fence comes again."""

    def _fence(self, fence: Fence) -> list[Instruction]:
        if fence.epoch == self.epoch and fence.operation is not None:
            self.held = applied(self.held, fence.operation)
            self._engine_told = not self._engine_rows
            self._parents = fence.operation.parents
        return super()._fence(fence)


class IgnoresEmitFrom(HopSession):
    """Forwards everything in a refill."""

    def _answer(self, step: Step, done: PassDone, service_class: ServiceClass) -> Forward:
        whole = msgspec.structs.replace(step, emit_from=())
        return super()._answer(whole, done, service_class)


class ForgetsParents(HopSession):
    """Changes the number of rows, but every new row is the old row of its number."""

    def _raise_epoch(self, epoch: int, operation: RowOperation | None) -> None:
        if operation is not None and operation.parents is not None and self.held:
            rows = len(self.held)
            parents = tuple(row % rows for row in range(len(operation.parents)))
            lengths = applied(self.held, operation)
            operation = RowOperation(parents=parents, truncate_to=operation.truncate_to)
            super()._raise_epoch(epoch, operation)
            self.held = lengths
        else:
            super()._raise_epoch(epoch, operation)


class ForgetsEarlierForks(HopSession):
    """Tells the engine of the newest fork only, if two came before a pass."""

    def _raise_epoch(self, epoch: int, operation: RowOperation | None) -> None:
        self._parents = None
        super()._raise_epoch(epoch, operation)


class TakesWhatLiesBeyond(HopSession):
    """Computes a step although the one before it is missing."""

    def _step(self, step: Step, payload: Any, sender: PeerId) -> list[Instruction]:
        if step.epoch == self.epoch and step.seq > self._next_seq:
            self._next_seq = step.seq
            self.held = self.held or (0,) * len(step.starts)
            missing = [a - b for a, b in zip(step.starts, self.expected, strict=True)]
            self.held = added(self.held, tuple(missing))
        return super()._step(step, payload, sender)


class OpensEpochsAnywhere(HopSession):
    """Begins an epoch with any step, also when the one with the operation was lost."""

    def _step(self, step: Step, payload: Any, sender: PeerId) -> list[Instruction]:
        if step.epoch > self.epoch and step.seq:
            self._raise_epoch(step.epoch, None)
            self._next_seq = step.seq
            self.held = step.starts
        return super()._step(step, payload, sender)


class TakesOldEpochs(HopSession):
    """Takes frames of an older epoch as if they were of this one."""

    def _step(self, step: Step, payload: Any, sender: PeerId) -> list[Instruction]:
        if step.epoch < self.epoch and len(step.starts) == len(self.held):
            self._passes.clear()
            self.held = step.starts
            self._engine_told = not self._engine_rows
            step = msgspec.structs.replace(step, epoch=self.epoch, seq=self._next_seq)
            step = msgspec.structs.replace(step, operation=None)
        return super()._step(step, payload, sender)


class ForgetsRollbacks(HopSession):
    """Does not tell the engine what a new epoch keeps, only its forks."""

    def _take(self, step: Step, payload: Any) -> list[Instruction]:
        instructions = super()._take(step, payload)
        return [_without_truncation(instruction) for instruction in instructions]


def _without_truncation(instruction: Instruction) -> Instruction:
    if not isinstance(instruction, Compute) or instruction.step.operation is None:
        return instruction
    operation = msgspec.structs.replace(instruction.step.operation, truncate_to=None)
    step = msgspec.structs.replace(instruction.step, operation=operation)
    return replace(instruction, step=step)
