"""A step that a user asks for: whether it can be, and how it is kept until it is answered."""

from dataclasses import dataclass, replace
from typing import Any

import msgspec

from swarm.sessions import failures
from swarm.sessions.messages import MAX_STEP_TOKENS, Grant, Output, RowOperation, Step
from swarm.sessions.rules import (
    Lengths,
    added,
    emitted,
    lacks,
    operation_fault,
    shape_fault,
    wanted,
)


@dataclass(frozen=True)
class Asked:
    """A step that the user asked for."""

    ticket: int
    step: Step
    payload: Any
    size_bytes: int

    def without_operation(self) -> "Asked":
        """To be sent again, where its operation has been applied."""
        return replace(self, step=msgspec.structs.replace(self.step, operation=None))

    def answer_fault(self, output: Output, last_hop: int) -> str | None:
        """What is wrong with the shape of its answer by hop `last_hop`."""
        takes = wanted(emitted(self.step, last_hop), self.step.want)
        counts = tuple(take for _, take in takes)
        shapes = [tensor.shape[:1] for tensor in output.tensors]
        if output.counts == counts and shapes == [(sum(counts),)] * bool(sum(counts)):
            return None
        return f"{output.counts} tokens, shapes {shapes}, not {sum(counts)}"


def check_operation(grant: Grant, planned: Lengths, operation: RowOperation) -> None:
    """`planned`: the slots of each row before it. Raises StepRejectedError."""
    if not planned:
        raise failures.rejected(grant, "an operation before the first step")
    fault = operation_fault(operation, len(planned), grant.rows)
    if fault is None and lacks(planned, operation):
        fault = f"keeps {operation.truncate_to} slots of {planned}"
    if fault is not None:
        raise failures.rejected(grant, fault)


def check_step(grant: Grant, step: Step) -> None:
    """Raises StepRejectedError, and SessionFullError for more than was reserved."""
    if len(step.starts) != len(step.counts):
        text = f"{len(step.counts)} counts for {len(step.starts)} rows"
        raise failures.rejected(grant, text)
    longest = max(added(step.starts, step.counts), default=0)
    if longest > grant.length:
        raise failures.full(grant, longest)
    if not 0 < sum(step.counts) <= MAX_STEP_TOKENS or min(step.counts) < 0:
        text = f"{sum(step.counts)} tokens; a step has 1 to {MAX_STEP_TOKENS}"
        raise failures.rejected(grant, text)
    if (fault := shape_fault(step, grant)) is not None:
        raise failures.rejected(grant, fault)
