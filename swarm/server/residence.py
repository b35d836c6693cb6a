"""The blocks that a server hosts: chosen, loaded, served, and left for others."""

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import torch

from swarm.errors import SwarmError
from swarm.routing.view import ServerState
from swarm.server import telling
from swarm.server.choosing import agree_on_span
from swarm.server.events import EventSink
from swarm.server.hosted import Hosted
from swarm.server.hosting import check_memory
from swarm.server.loading import in_own_thread
from swarm.server.memory import Budget
from swarm.server.rates import SAMPLE_S
from swarm.server.reachability import join_addresses
from swarm.server.span_loading import fetch_span, load_span
from swarm.server.speed import guess_decode_ms
from swarm.server.stay import Place, Stay
from swarm.spans import PeerId, Span

ENGINE_WATCH_S = 1.0
_CANNOT_BE_SERVED = (SwarmError, OSError, RuntimeError, MemoryError)
"""What fetching and loading may end with; torch says RuntimeError when memory is short."""


@dataclass(frozen=True)
class Voice:
    """How a server says what becomes of it."""

    tell: EventSink
    """To its operator."""
    announce: Callable[[ServerState], Awaitable[bool]]
    """To the swarm, with the present span; True: others took it."""
    hurry: asyncio.Event
    """Set when the server is to end at once."""


class Residence:
    """One span after the other; `span` is what the record says."""

    def __init__(self, place: Place, voice: Voice) -> None:
        self.span: Span | None = None
        self.stay: Stay | None = None
        """None while it starts, and while it moves."""
        self.reload_s = 0.0
        """What loading took the last time."""
        self._place = place
        self._voice = voice
        self._hosted: Hosted | None = None
        self._leaving: asyncio.Task[None] | None = None

    @property
    def block_digests(self) -> bytes:
        """Of what is loaded."""
        return b"" if self._hosted is None else self._hosted.block_digests

    @property
    def may_move(self) -> bool:
        """Whether it chose its blocks itself, and there are others to choose."""
        config, blocks = self._place.config, self._place.plan.checkpoint.num_blocks
        chosen = config.blocks is None and config.move_check_s > 0
        return chosen and self.span is not None and len(self.span) < blocks

    async def choose(self, budget: Budget) -> Span:
        """`--blocks`, else all that fit, where the swarm is weakest; announced as joining."""
        place, config = self._place, self._place.config
        checkpoint = place.plan.checkpoint
        count = check_memory(config, checkpoint, place.plan.needs, budget)
        if config.blocks is not None:
            self.span = config.blocks
        elif count == checkpoint.num_blocks or not config.peers:
            self.span = Span(0, count)
        else:
            self.span = await agree_on_span(
                place.network.peer_id,
                count,
                await in_own_thread(lambda _: guess_decode_ms(place.plan, place.threads)),
                place.plan.numerics,
                place.neighbourhood.view,
                self._join_at,
                random.Random(),
            )
        self._voice.tell(telling.memory_event(place.plan, self.span, config, budget))
        await self._voice.announce(ServerState.JOINING)
        return self.span

    async def _join_at(self, span: Span) -> bool:
        self.span = span
        return await self._voice.announce(ServerState.JOINING)

    async def serve(self, span: Span) -> None:
        """Loads the blocks, and has them served."""
        place, loop = self._place, asyncio.get_running_loop()
        began = loop.time()
        hosted = await load_span(place.plan, span, place.config, place.threads, self._voice.tell)
        self.reload_s = loop.time() - began
        self._hosted = hosted
        if place.config.peers:
            await place.neighbourhood.check_digests(span, hosted.block_digests)
        self.stay = Stay(place, hosted)
        await self.stay.start()
        await self._voice.announce(ServerState.ONLINE)
        network = place.network
        address = join_addresses(network.addresses, place.config.announce, network.peer_id)[0]
        self._voice.tell(telling.online_event(place.plan, span, hosted, address, network.peer_id))

    async def prepare(self, span: Span) -> bool:
        """Fetches what these blocks need, while the present ones are served; False: it cannot."""
        try:
            await fetch_span(self._place.plan, span, self._voice.tell)
        except _CANNOT_BE_SERVED as error:
            self._tell_it_stays(span, error)
            return False
        return True

    async def move(self, span: Span, reason: str) -> bool:
        """Drains, loads, and is online on `span`; False: it cannot be served here, and nothing is
        served any more."""
        old, stay = self.span, self.stay
        assert old is not None and stay is not None
        self._voice.tell(telling.moving_event(old, span, reason))
        await self._voice.announce(ServerState.DRAINING)
        await stay.hand_over(self._place.config.drain_timeout_s, self._voice.hurry)
        await self.leave()
        del stay
        try:
            await self.settle(span)
        except _CANNOT_BE_SERVED as error:
            await self.leave()
            self.span = old
            self._tell_it_stays(span, error)
            return False
        return True

    async def settle(self, span: Span) -> None:
        """Loads `span` and serves it; others read meanwhile that it is joining there."""
        await self._join_at(span)
        await self.serve(span)

    def _tell_it_stays(self, span: Span, error: Exception) -> None:
        assert self.span is not None
        self._voice.tell(telling.stays_event(self.span, span, error))

    def linked_s(self) -> dict[PeerId, float]:
        """Round trips of the links to other servers that are up."""
        return {} if self.stay is None else self.stay.reporter.round_trips_s()

    async def sample(self) -> None:
        """Makes rates of counters until it is cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            if self.stay is not None:
                self.stay.reporter.sample()

    async def can_compute(self) -> None:
        """Returns when the engine's thread has ended: nothing can be computed any more."""
        while self.stay is None or self.stay.can_compute:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(ENGINE_WATCH_S)

    async def leave(self) -> None:
        """Ends the service of the present blocks and frees their memory.

        Who is cancelled here has begun it; the next call waits for the end.
        """
        stay, self.stay, self._hosted = self.stay, None, None
        if stay is not None:
            self._leaving = asyncio.ensure_future(stay.close())
        del stay
        if self._leaving is not None:
            try:
                await asyncio.shield(self._leaving)
            finally:
                if self._leaving.done():
                    self._leaving = None
        gc.collect()
        if self._place.plan.device.type == "cuda":
            # What torch keeps for itself would not count as free for the next blocks.
            torch.cuda.empty_cache()
