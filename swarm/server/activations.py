"""Activations between the wire and the engine: checked when they come, trimmed when they go."""

from collections.abc import Sequence

import torch

from swarm.errors import StepRejectedError
from swarm.sessions.events import Part
from swarm.sessions.messages import Step
from swarm.wire.codecs import unpack_tensors


def unpack_hidden(step: Step, payload: memoryview, hidden_size: int) -> torch.Tensor:
    """The step's `hidden`, `[sum(counts), hidden_size]`, in the dtype of the wire.

    It shares the payload's memory where that is writable. Raises `StepRejectedError` for another
    shape or size. Whether all items are finite is the engine's to find out.
    """
    expected = (sum(step.counts), hidden_size)
    for spec in step.tensors:
        # Before anything is unpacked: sizes that a hostile peer claims must cost nothing.
        if spec.name != "hidden" or spec.shape != expected:
            raise StepRejectedError(
                f"tensor {spec.name!r} of shape {list(spec.shape)} where `hidden` of shape"
                f" {list(expected)} is due"
            )
    hidden = unpack_tensors(step.tensors, payload).get("hidden")
    if hidden is None:
        raise StepRejectedError(f"no `hidden` of shape {list(expected)} in the step")
    return hidden


def chosen_rows(output: torch.Tensor, takes: Sequence[tuple[int, int]] | None) -> torch.Tensor:
    """Of `output`, `[tokens, hidden_size]`, what `takes` names: of each row, `skip` tokens are left
    out and the `take` tokens after them, its last ones, are taken. None: all.

    A view where they lie together, else a copy.
    """
    if takes is None:
        return output
    ranges: list[tuple[int, int]] = []
    end = 0
    for skip, take in takes:
        begin, end = end + skip, end + skip + take
        if ranges and ranges[-1][1] == begin:
            ranges[-1] = (ranges[-1][0], end)
        elif take:
            ranges.append((begin, end))
    if len(ranges) == 1:
        return output[ranges[0][0] : ranges[0][1]]
    return torch.cat([output[begin:end] for begin, end in ranges]) if ranges else output[:0]


def own_copy(part: torch.Tensor) -> torch.Tensor:
    """`part` on the CPU, as a tensor that keeps no much larger one alive."""
    part = part.to("cpu")
    return part.clone() if part.untyped_storage().nbytes() > 2 * part.nbytes else part


def joined_parts(parts: Sequence[Part]) -> torch.Tensor:
    """The tokens of a replay, one payload after the other."""
    return torch.cat([part.payload[part.first : part.first + part.tokens] for part in parts])
