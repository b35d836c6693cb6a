"""A session over the servers of one route: steps out, answers back, other servers for lost ones."""

import asyncio
import logging
import os
from collections.abc import Sequence

import msgspec
import torch

from swarm.client.answers import unpacked, wait_for
from swarm.client.chain import ChainStep, OnPrefill
from swarm.client.encoding import Answer, Encoded, encode_piece, joined
from swarm.client.expected import expected
from swarm.client.hop_watch import HopWatch
from swarm.client.improving import Improving
from swarm.client.lateness import Lateness
from swarm.client.mending import Mending
from swarm.client.pieces import cut
from swarm.client.routes import ClientRouter
from swarm.client.runtime import Runtime
from swarm.client.session_call import SessionCall
from swarm.client.swarm import Swarm
from swarm.client.target import Target
from swarm.errors import PeerError, SessionClosedError, SwarmError
from swarm.scheduling.prefill_chunks import chunk_tokens
from swarm.sessions.client import ClientSession
from swarm.sessions.events import (
    Deliver,
    Event,
    Forward,
    Instruction,
    NeedsRoute,
    PeerLost,
    Raise,
    Received,
    ShouldMove,
    Tick,
)
from swarm.sessions.messages import Close, Grant, Hop, Message, SignedGrant, Step
from swarm.sessions.step_times import silence_s
from swarm.spans import PeerId, SessionId
from swarm.wire.codecs import DTYPES

logger = logging.getLogger(__name__)


class RemoteSession:
    """An open session; a `Chain`. `step` and `close` may be called from any thread but the loop's.

    The other methods run in the loop. Between the two threads a step costs one wake-up each way:
    bytes are packed and unpacked in the caller's thread.

    When a hop is lost, others are looked for, and the session goes on there: `step` only takes
    longer. It raises when nothing was found within `repair_timeout_s`.
    """

    def __init__(
        self,
        runtime: Runtime,
        swarm: Swarm,
        target: Target,
        router: ClientRouter,
        grant: Grant,
        on_prefill: OnPrefill | None = None,
    ) -> None:
        self._runtime = runtime
        self._swarm = swarm
        self._settings = settings = swarm.settings
        self._target = target
        self._router = router
        self._on_prefill = on_prefill
        self._dtype = DTYPES[grant.dtype]
        self._client = ClientSession(
            grant,
            window=settings.window,
            # What looks for a new route gives up first, and knows why.
            rest_s=settings.repair_timeout_s + 10.0,
            can_reroute=True,
        )
        self._watch = HopWatch()
        self._lateness = Lateness()
        self._expect(grant)
        self._improving = Improving(swarm, target, router)
        self._lost: set[PeerId] = set()
        """Hops that do not have the session any more."""
        self._leaving: set[PeerId] = set()
        """Hops that serve it still, and are about to leave."""
        self._in_trouble_since: float | None = None
        """Nothing was answered since another route is looked for."""
        self._mending: Mending | None = None
        self._mending_task: asyncio.Task[None] | None = None
        self._session = grant.session
        self._route = grant.hops
        self._length = grant.length
        self._call: SessionCall | None = None
        self._closed = False
        self._pid = os.getpid()

    # ---- from any thread

    @property
    def route(self) -> tuple[Hop, ...]:
        return self._route

    @property
    def length(self) -> int:
        return self._length

    @property
    def is_over(self) -> bool:
        return self._closed

    def step(self, step: ChainStep) -> torch.Tensor:
        """Raises SessionError, MissingBlocksError and PeerError; the session is over then."""
        if self._pid != os.getpid():
            raise SessionClosedError(
                "the session belongs to the process that this one was forked from; open a new one",
                session=self._session,
            )
        most = self._settings.prefill_chunk_tokens
        pieces = cut(
            step.counts, step.keep, most or chunk_tokens(sum(step.counts), len(self._route))
        )
        call = SessionCall(pieces, step.operation)
        try:
            for piece in pieces:
                # Made here and not in the loop; the first travels while the next is made.
                self._runtime.call_soon(self._add, call, encode_piece(piece, step, self._dtype))
        except BaseException:
            self.close()  # the rest of the prompt will never come
            raise
        answers = wait_for(call, lambda: self._patience_s * (1 + len(pieces)), self._session)
        hidden = unpacked(
            pieces,
            answers,
            hidden_size=self._target.hidden_size,
            dtype=self._dtype,
            last=self._route[-1],
            session=self._session,
        )
        return hidden.to(step.hidden.dtype)

    def close(self) -> None:
        self._runtime.call_soon(self._close)

    @property
    def _patience_s(self) -> float:
        """How long a piece takes at most, with all that is done to get it answered."""
        return self._client.deadline_s + self._settings.repair_timeout_s

    # ---- in the loop

    def received(self, sender: PeerId, message: Message, payload: memoryview) -> None:
        if self._mending is not None:
            self._mending.received(sender, message, payload)
        self._handle(Received(sender, message, payload))

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        if peer == self._swarm.identity.peer_id:
            self._close(reason)
            return
        if self._mending is not None:
            self._mending.peer_lost(peer, reason)
        self._handle(PeerLost(peer, reason))

    def tick(self, now: float) -> None:
        if self._mending is not None:
            self._mending.tick(now)
        deadline = self._client.deadline
        if deadline is not None and now >= deadline:
            self._handle(Tick())
        if self._lateness.look(self._client, now):
            logger.info("session %s: a step is late", self._session.hex()[:8])
            self._apply(self._client.reroute(self._client.grant, None, now))
        for peer in self._lateness.suspects:
            self._swarm.troubles.suspect(peer, self._lateness.asked_at or now)
        self._look_for_doubts(now)
        if self._mending is None and self._improving.look(self._client.grant, now):
            logger.info("session %s: other servers are much faster", self._session.hex()[:8])
            self._mend()

    def _add(self, call: SessionCall, encoded: Encoded) -> None:
        if call.done.done():
            return
        index = len(call.tickets)
        try:
            if self._client.error is not None:
                raise self._client.error
            if index == 0:
                self._call, call.began = call, self._swarm.time
            ticket, instructions = self._client.step(
                encoded.piece.counts,
                encoded.position_ids,
                encoded.piece.want,
                encoded,
                now=self._swarm.time,
                operation=call.operation if index == 0 else None,
                size_bytes=encoded.size_bytes,
                horizon=encoded.horizon,
            )
            call.tickets[ticket] = index
            self._apply(instructions)
        except Exception as error:  # whatever it is, it belongs to who waits in another thread
            self._fail(error)
            if not call.done.done():
                call.done.set_exception(error)

    def _handle(self, event: Event) -> None:
        try:
            self._apply(self._client.handle(event, self._swarm.time))
        except Exception as error:  # told to who waits in another thread: nobody else hears of it
            logger.exception("session %s failed", self._session.hex()[:8])
            self._fail(error)

    def _apply(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Forward():
                    self._send(instruction)
                case Deliver(ticket, output, payload):
                    self._deliver(ticket, (output, payload))
                case NeedsRoute(peer, error):
                    self._on_lost(peer, error)
                case ShouldMove(peer, detail):
                    logger.info("another server is looked for: %s", detail)
                    self._leaving.add(peer)
                    self._mend()
                case Raise(error):
                    self._fail(error)
                case _:
                    logger.error("an instruction that no client knows: %r", instruction)

    def _send(self, forward: Forward) -> None:
        message, buffers = forward.message, []
        if isinstance(message, Step):
            if forward.parts is None:
                encoded: Encoded = forward.payload
                specs, buffers = encoded.specs, encoded.buffers
            else:
                specs, buffers = joined(forward.parts)
            message = msgspec.structs.replace(message, tensors=specs)
        try:
            self._swarm.send(forward.to, message, buffers, forward.service_class, self._session)
        except PeerError as error:
            if not isinstance(message, Close):
                self._handle(PeerLost(forward.to, str(error)))

    def _deliver(self, ticket: int, answer: Answer) -> None:
        self._in_trouble_since = None
        call = self._call
        if call is None or ticket not in call.tickets:
            return
        call.answers[call.tickets[ticket]] = answer
        call.missing -= 1
        if self._on_prefill is not None and len(call.pieces) > 1:
            self._tell_progress(call, self._on_prefill)
        seconds = self._swarm.time - call.began if len(call.pieces) == 1 else None
        self._lateness.answered(seconds)
        self._improving.answered(seconds)
        if call.missing == 0:
            self._call = None
            if self._mending is not None:
                self._mending.step_ended()
            if not call.done.done():
                call.done.set_result(call.answers)

    def _tell_progress(self, call: SessionCall, on_prefill: OnPrefill) -> None:
        try:
            on_prefill(*call.progress())
        except Exception:
            logger.exception("what shows the progress of a prompt failed")

    # ---- other servers

    def _on_lost(self, peer: PeerId, error: SwarmError) -> None:
        """The hop does not have the session any more, or cannot be reached."""
        if peer not in self._lost:
            logger.info("another server is looked for: %s", error)
            self._lost.add(peer)
            self._swarm.troubles.failed(peer, self._swarm.time)
        self._mend()

    def _look_for_doubts(self, now: float) -> None:
        """A link that is down may come back, and what is late may come; meanwhile another way is
        prepared."""
        hops = [PeerId(hop.peer) for hop in self._route]
        self._watch.look(hops, self._swarm.hears, now)
        if self._doubted() and not self._client.idle:
            self._mend()
        elif not self._to_replace():
            self._stop_mending()

    def _doubted(self) -> set[PeerId]:
        return self._watch.doubted | self._lateness.suspects

    def _to_replace(self) -> set[PeerId]:
        return self._lost | self._leaving | self._doubted() | self._improving.given_up

    def _barred(self) -> set[PeerId]:
        """Whom to ask anew makes no sense; a hop that is lost for sure may be there again."""
        return self._leaving | self._improving.given_up | (self._doubted() - self._lost)

    def _mend(self) -> None:
        if self._closed or self._mending is not None:
            return
        now = self._swarm.time
        if self._in_trouble_since is None:
            self._in_trouble_since = now
        self._apply(self._client.close_left())
        self._mending = Mending(
            self._swarm,
            self._target,
            self._router,
            self._client.grant,
            lost=self._to_replace,
            barred=self._barred,
            urgent=lambda: bool(self._lost or self._doubted()),
            decodes=lambda: self._client.waited_s(self._swarm.time) > 0.0,
            ends=self._in_trouble_since + self._settings.repair_timeout_s,
        )
        self._mending_task = asyncio.get_running_loop().create_task(
            self._run_mending(self._mending), name=f"mending {self._session.hex()[:8]}"
        )

    async def _run_mending(self, mending: Mending) -> None:
        try:
            grant, signed = await mending.run()
        except SwarmError as error:
            self._mending = self._mending_task = None
            if self._lost:
                self._fail(error)
            else:
                self._in_trouble_since = None
                self._improving.stays()
                logger.info("the session stays where it is: %s", error)
        except Exception as error:
            self._mending = self._mending_task = None
            logger.exception("looking for another route failed")
            self._fail(error)
        else:
            self._mending = self._mending_task = None
            self._go_on(grant, signed)

    def _go_on(self, grant: Grant, signed: SignedGrant) -> None:
        try:
            self._reroute(grant, signed)
        except Exception as error:
            logger.exception("going on over another route failed")
            self._apply([Forward(PeerId(hop.peer), Close(self._session)) for hop in grant.hops])
            self._fail(error)

    def _reroute(self, grant: Grant, signed: SignedGrant) -> None:
        for peer in self._watch.doubted:
            self._swarm.troubles.suspect(peer, self._swarm.time)
        self._lost.clear()
        self._leaving.clear()
        self._watch.forget()
        self._expect(grant)
        self._improving.went()
        self._router.opened(SessionId(self._session), grant.hops)
        self._route = grant.hops
        self._apply(self._client.reroute(grant, signed, self._swarm.time))

    def _expect(self, grant: Grant) -> None:
        """The deadlines of steps over the hops of `grant`."""
        slow = expected(self._swarm, self._target, self._router, grant.hops)
        self._lateness.over(slow.step_s)
        self._client.deadline_s = silence_s(self._settings.step_timeout_s, slow.chunk_s)

    def _stop_mending(self) -> None:
        """Nobody needs another route, or the session is over."""
        task, self._mending, self._mending_task = self._mending_task, None, None
        if task is not None:
            self._in_trouble_since = None
            task.cancel()

    # ---- the end

    def _fail(self, error: Exception) -> None:
        if isinstance(error, SwarmError) and not self._closed:
            self._client.error = error  # for who asks later
        call, self._call = self._call, None
        if call is not None and not call.done.done():
            call.done.set_exception(error)
        self._close()

    def _close(self, reason: str = "closed") -> None:
        if self._closed:
            return
        self._closed = True
        self._stop_mending()
        self._router.closed(SessionId(self._session))
        self._apply(self._client.close())
        self._swarm.detach(self._session)
        call, self._call = self._call, None
        if call is not None and not call.done.done():
            text = f"session {self._session.hex()[:8]}: {reason}"
            call.done.set_exception(SessionClosedError(text, session=self._session))
