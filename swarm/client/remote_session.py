"""A session over the servers of one route: steps out, answers back."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec
import torch

from swarm.client.chain import ChainStep, OnPrefill
from swarm.client.pieces import Piece, cut
from swarm.client.runtime import Runtime
from swarm.client.swarm import Swarm
from swarm.errors import (
    PeerError,
    PeerTimeoutError,
    SessionClosedError,
    StepRejectedError,
    SwarmError,
)
from swarm.sessions.client import ClientSession
from swarm.sessions.events import (
    Deliver,
    Event,
    Forward,
    Instruction,
    PeerLost,
    Raise,
    Received,
    Tick,
)
from swarm.sessions.messages import (
    Grant,
    Hop,
    Message,
    Output,
    RowOperation,
    Step,
    TensorSpec,
    Want,
)
from swarm.spans import PeerId
from swarm.wire.codecs import DTYPES, pack_tensors, unpack_tensors

logger = logging.getLogger(__name__)

Answer = tuple[Output, memoryview]


@dataclass(frozen=True)
class _Encoded:
    """One piece with its bytes, ready to be sent."""

    piece: Piece
    position_ids: tuple[int, ...]
    specs: tuple[TensorSpec, ...]
    buffers: list[memoryview]


class _Call:
    """One `step()` that waits for its answers."""

    def __init__(self, pieces: Sequence[_Encoded], operation: RowOperation | None) -> None:
        self.pieces = pieces
        self.operation = operation
        self.tickets: dict[int, int] = {}
        self.answers: list[Answer | None] = [None] * len(pieces)
        self.missing = len(pieces)
        self.done: Future[list[Answer | None]] = Future()


class RemoteSession:
    """An open session; a `Chain`. `step` and `close` may be called from any thread but the loop's.

    The other methods run in the loop. Between the two threads a step costs one wake-up each way:
    bytes are packed and unpacked in the caller's thread.
    """

    def __init__(
        self,
        runtime: Runtime,
        swarm: Swarm,
        grant: Grant,
        hidden_size: int,
        on_prefill: OnPrefill | None = None,
    ) -> None:
        self._runtime = runtime
        self._swarm = swarm
        self._settings = swarm.settings
        self._hidden_size = hidden_size
        self._on_prefill = on_prefill
        self._dtype = DTYPES[grant.dtype]
        self._client = ClientSession(
            grant, window=swarm.settings.window, deadline_s=swarm.settings.step_timeout_s
        )
        self._session = grant.session
        self._route = grant.hops
        self._length = grant.length
        self._call: _Call | None = None
        self._closed = False
        self._pid = os.getpid()

    # ---- from any thread

    @property
    def route(self) -> tuple[Hop, ...]:
        return self._route

    @property
    def length(self) -> int:
        return self._length

    def step(self, step: ChainStep) -> torch.Tensor:
        """Raises SessionError and PeerError as `swarm.errors` says; the session is over then."""
        if self._pid != os.getpid():
            raise SessionClosedError(
                "the session belongs to the process that this one was forked from; open a new one",
                session=self._session,
            )
        pieces = cut(step.counts, step.keep, self._settings.prefill_chunk_tokens)
        call = _Call([self._encode(piece, step) for piece in pieces], step.operation)
        self._runtime.call_soon(self._begin, call)
        try:
            # The session has deadlines of its own; this one is for a loop that has died.
            answers = call.done.result(self._settings.step_timeout_s * (1 + len(pieces)))
        except TimeoutError as error:
            if isinstance(error, SwarmError):
                raise
            raise PeerTimeoutError(
                f"session {self._session.hex()[:8]} was not answered; open a new session"
            ) from None
        parts = [
            self._decode(piece, answer)
            for piece, answer in zip(pieces, answers, strict=True)
            if piece.want is not Want.NONE
        ]
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        return hidden.to(step.hidden.dtype)

    def close(self) -> None:
        self._runtime.call_soon(self._close)

    def _encode(self, piece: Piece, step: ChainStep) -> _Encoded:
        hidden = step.hidden[piece.start : piece.end].to(self._dtype)
        specs, buffers = pack_tensors({"hidden": hidden})
        return _Encoded(piece, tuple(step.position_ids[piece.start : piece.end]), specs, buffers)

    def _decode(self, piece: Piece, answer: Answer | None) -> torch.Tensor:
        assert answer is not None
        output, payload = answer
        hidden = unpack_tensors(output.tensors, payload).get("hidden")
        expected = [sum(output.counts), self._hidden_size]
        if hidden is None or list(hidden.shape) != expected or hidden.dtype is not self._dtype:
            last = self._route[-1]
            raise StepRejectedError(
                f"{last.peer} answered {output.tensors} where {expected} of {self._dtype} was "
                "asked for; open a new session",
                session=self._session,
                peer=last.peer,
                blocks=f"{last.start}:{last.end}",
            )
        if len(piece.taken) == hidden.shape[0]:
            return hidden
        return hidden[list(piece.taken)]

    # ---- in the loop

    def received(self, sender: PeerId, message: Message, payload: memoryview) -> None:
        self._handle(Received(sender, message, payload))

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        if peer == self._swarm.identity.peer_id:
            self._close(reason)
        else:
            self._handle(PeerLost(peer, reason))

    def tick(self, now: float) -> None:
        deadline = self._client.deadline
        if deadline is not None and now >= deadline:
            self._handle(Tick())

    def _begin(self, call: _Call) -> None:
        try:
            if self._client.error is not None:
                raise self._client.error
            self._call = call
            for index, encoded in enumerate(call.pieces):
                ticket, instructions = self._client.step(
                    encoded.piece.counts,
                    encoded.position_ids,
                    encoded.piece.want,
                    encoded,
                    now=self._swarm.time,
                    operation=call.operation if index == 0 else None,
                )
                call.tickets[ticket] = index
                self._apply(instructions)
        except Exception as error:
            self._fail(error)
            if not call.done.done():
                call.done.set_exception(error)

    def _handle(self, event: Event) -> None:
        self._apply(self._client.handle(event, self._swarm.time))

    def _apply(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Forward():
                    self._send(instruction)
                case Deliver(ticket, outputs):
                    self._deliver(ticket, outputs[-1])
                case Raise(error):
                    self._fail(error)
                case _:
                    logger.error("an instruction that no client knows: %r", instruction)

    def _send(self, forward: Forward) -> None:
        message, buffers = forward.message, []
        if isinstance(message, Step):
            encoded: _Encoded = forward.payload
            message = msgspec.structs.replace(message, tensors=encoded.specs)
            buffers = encoded.buffers
        try:
            self._swarm.send(forward.to, message, buffers, forward.service_class, self._session)
        except PeerError as error:
            if isinstance(message, Step):
                self._handle(PeerLost(forward.to, str(error)))

    def _deliver(self, ticket: int, answer: Answer) -> None:
        call = self._call
        if call is None or ticket not in call.tickets:
            return
        call.answers[call.tickets[ticket]] = answer
        call.missing -= 1
        if self._on_prefill is not None and len(call.pieces) > 1:
            self._tell_progress(call, self._on_prefill)
        if call.missing == 0:
            self._call = None
            if not call.done.done():
                call.done.set_result(call.answers)

    def _tell_progress(self, call: _Call, on_prefill: OnPrefill) -> None:
        sizes = [encoded.piece.end - encoded.piece.start for encoded in call.pieces]
        done = sum(
            size for size, answer in zip(sizes, call.answers, strict=True) if answer is not None
        )
        try:
            on_prefill(done, sum(sizes))
        except Exception:
            logger.exception("what shows the progress of a prompt failed")

    def _fail(self, error: Exception) -> None:
        call, self._call = self._call, None
        if call is not None and not call.done.done():
            call.done.set_exception(error)
        self._close()

    def _close(self, reason: str = "closed") -> None:
        if self._closed:
            return
        self._closed = True
        self._apply(self._client.close())
        self._swarm.detach(self._session)
        call, self._call = self._call, None
        if call is not None and not call.done.done():
            call.done.set_exception(
                SessionClosedError(
                    f"session {self._session.hex()[:8]}: {reason}", session=self._session
                )
            )
