"""The answers of a call, as the thread that asked takes them: waited for, then unpacked."""

from collections.abc import Callable, Sequence

import torch

from swarm.client.encoding import Answer, decode_answer
from swarm.client.pieces import Piece
from swarm.client.session_call import SessionCall
from swarm.errors import PeerTimeoutError, StepRejectedError, SwarmError
from swarm.sessions.messages import Hop, Want


def wait_for(
    call: SessionCall, patience_s: Callable[[], float], session: bytes
) -> Sequence[Answer | None]:
    """The answers of all pieces; raises what the loop says instead.

    The session has deadlines of its own; `patience_s` is for a loop that has died, which
    PeerTimeoutError says. It is asked again when it is over: another route may need more.
    """
    given_s = 0.0
    while True:
        wanted_s = patience_s()
        try:
            return call.done.result(wanted_s - given_s)
        except TimeoutError as error:
            if isinstance(error, SwarmError):
                raise
        given_s = wanted_s
        if patience_s() <= given_s:
            raise PeerTimeoutError(
                f"session {session.hex()[:8]} was not answered; open a new session"
            )


def unpacked(
    pieces: Sequence[Piece],
    answers: Sequence[Answer | None],
    *,
    hidden_size: int,
    dtype: torch.dtype,
    last: Hop,
    session: bytes,
) -> torch.Tensor:
    """What was asked for, `[tokens, hidden_size]` of `dtype`, in the packed order of the step.

    Raises StepRejectedError, which names `last`, when an answer has other tensors.
    """
    parts = []
    for piece, answer in zip(pieces, answers, strict=True):
        if piece.want is Want.NONE:
            continue
        assert answer is not None
        hidden = decode_answer(answer, hidden_size, dtype)
        if hidden is None:
            raise StepRejectedError(
                f"{last.peer} answered {answer[0].tensors} where {list(answer[0].counts)} tokens "
                f"of {dtype} were asked for; open a new session",
                session=session,
                peer=last.peer,
                blocks=f"{last.start}:{last.end}",
            )
        whole = len(piece.taken) == hidden.shape[0]
        parts.append(hidden if whole else hidden[list(piece.taken)])
    return parts[0] if len(parts) == 1 else torch.cat(parts)
