"""Between a session's rules and the engine and the wire: instructions, jobs, results, messages."""

from collections.abc import Sequence

import msgspec
import torch

from swarm.errors import NotFiniteError, StepRejectedError, SwarmError
from swarm.server.activations import chosen_rows, joined_parts, unpack_hidden
from swarm.server.engine_jobs import EngineJob, EngineResult
from swarm.sessions.events import Compute, Forward, PassDone, PassFailed
from swarm.sessions.hop import HopSession
from swarm.sessions.messages import Fail, FailKind, Message, Output, Step
from swarm.spans import SessionId
from swarm.wire.codecs import DTYPES, pack_tensors


def engine_job(hop: HopSession, compute: Compute, hidden_size: int) -> EngineJob:
    """The job that `compute` asks for; `StepRejectedError` for activations that do not fit."""
    step = compute.step
    return EngineJob(
        session=SessionId(step.session),
        client=hop.client,
        epoch=step.epoch,
        seq=step.seq,
        service_class=compute.service_class,
        operation=step.operation,
        starts=step.starts,
        counts=step.counts,
        position_ids=step.position_ids,
        horizon=step.horizon,
        hidden=unpack_hidden(step, compute.payload, hidden_size),
        blocks=hop.blocks,
        owner=hop,
    )


def result_event(hop: HopSession, result: EngineResult) -> PassDone | PassFailed:
    """What the engine's result means to the session."""
    job, output = result.job, result.output
    if output is None:
        why, detail = _blame(hop, result.error)
        return PassFailed(job.epoch, job.seq, Fail(job.session, hop.hop, why, detail[:500]))
    return PassDone(job.epoch, job.seq, output, result.compute_ms, result.queue_ms, output.nbytes)


def outgoing_message(hop: HopSession, forward: Forward) -> tuple[Message, Sequence[memoryview]]:
    """The message and its payload: what is to go on of the output, in the session's dtype."""
    if forward.parts is not None:
        hidden: torch.Tensor = joined_parts(forward.parts)
    elif forward.payload is not None:
        hidden = chosen_rows(forward.payload, forward.rows)
    else:
        return forward.message, ()
    message = forward.message
    assert isinstance(message, Step | Output)
    specs, buffers = pack_tensors({"hidden": hidden.to(DTYPES[hop.grant.dtype])})
    return msgspec.structs.replace(message, tensors=specs), buffers


def _blame(hop: HopSession, error: SwarmError | None) -> tuple[FailKind, str]:
    """How an engine's error is told to the client; what was wrong with a step, its pusher did."""
    match error:
        case NotFiniteError():
            return FailKind.NOT_FINITE, str(error)
        case StepRejectedError():
            pusher = hop.grant.hops[hop.hop - 1].peer if hop.hop else hop.client
            return FailKind.REJECTED, f"a step from {pusher}: {error}"
        case _:
            return FailKind.INTERNAL, str(error)
