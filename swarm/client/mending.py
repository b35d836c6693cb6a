"""A running session is opened on other servers, in place of those that it has lost."""

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from swarm.client.agreement import warn_of_doubted
from swarm.client.loads import ask_loads
from swarm.client.opening_run import OpeningRun
from swarm.client.probing import MANY_PROBED, MAX_PROBED, silent_servers
from swarm.client.replacement import replaced_route
from swarm.client.routes import ClientRouter
from swarm.client.target import Target
from swarm.errors import (
    CacheFullError,
    CheckpointError,
    MissingBlocksError,
    PeerError,
    RefusedError,
    SwarmError,
    UnreachablePeerError,
)
from swarm.routing.view import SwarmView
from swarm.sessions.messages import Close, Grant, Hop, Message, SignedGrant
from swarm.spans import PeerId, SessionId, Span

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm
    from swarm.dht.records import ServerRecord

logger = logging.getLogger(__name__)

CONNECT_S = 2.0
"""How long a replacement may take to be reached before another is tried; it may win later."""
BACKOFF_S = (0.1, 2.0)
"""The shortest and the longest pause between two tries; each is stretched at random."""
LOADS_S = 0.25
"""How long servers have to say how busy they are, while a generation waits."""
FRESH_S = 0.5
"""How old the list of servers may be that a further try looks at."""
STEP_S = 1.0
"""How long a planned move waits for the answer to the decode step that is under way."""


_WORTH_ANOTHER_TRY = (MissingBlocksError, CacheFullError, RefusedError, PeerError, CheckpointError)


class Mending:
    """Looks for other servers until it has opened the session there, or its time is over.

    A `Listener`, which hears what its session hears. The session itself may go on over its old
    route meanwhile: nothing changes before the caller reroutes it.
    """

    def __init__(
        self,
        swarm: "Swarm",
        target: Target,
        router: ClientRouter,
        grant: Grant,
        *,
        lost: Callable[[], Collection[PeerId]],
        barred: Callable[[], Collection[PeerId]],
        urgent: Callable[[], bool],
        decodes: Callable[[], bool],
        ends: float,
    ) -> None:
        """`grant`: as it is now; the routes that are tried have higher numbers. `lost`: the hops
        that are to be replaced; `barred`: servers that are no replacement; both are asked for at
        each try. `urgent`: whether one of `lost` serves no more; else the move is planned.
        `decodes`: whether a decode step is under way. `ends`: when to give up (loop time)."""
        self._swarm = swarm
        self._target = target
        self._router = router
        self._old = grant
        self._grant = grant
        self._lost = lost
        self._barred = barred
        self._urgent = urgent
        self._decodes = decodes
        self._ends = ends
        self._full: set[PeerId] = set()
        self._unheard: set[PeerId] = set()
        """Servers that were asked for a hello, and have not answered."""
        self._wary = False
        """One was chosen that was not there: those that answer are taken first."""
        self._may_wait = False
        self._retried: tuple[str, ...] = ()
        """The blocks that nobody serves but servers that failed lately, while these are tried."""
        self._step_ended = asyncio.Event()
        self._opening: OpeningRun | None = None
        self._planned = SessionId(secrets.token_bytes(16))
        """Counts where the session is going to be, so that others see it before it is there."""
        self._gone: set[PeerId] = set()
        """Peers whose link was lost while we were at it."""

    # ---- what the session hears

    def received(self, sender: PeerId, message: Message, payload: memoryview) -> None:
        if self._opening is not None:
            self._opening.received(sender, message, payload)

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        self._gone.add(peer)
        if self._opening is not None:
            self._opening.peer_lost(peer, reason)

    def tick(self, now: float) -> None:
        if self._opening is not None:
            self._opening.tick(now)
        if self._urgent():
            self._step_ended.set()

    def step_ended(self) -> None:
        """All that was under way is answered."""
        self._step_ended.set()

    # ---- the search

    async def run(self) -> tuple[Grant, SignedGrant]:
        """The new grant, which every new hop has accepted; the others learn it by a fence.

        Raises MissingBlocksError when no way was found in time.
        """
        try:
            return await self._search()
        finally:
            self._router.closed(self._planned)

    async def _search(self) -> tuple[Grant, SignedGrant]:
        pause_s, most_s = BACKOFF_S
        max_age_s: float | None = None
        while True:
            try:
                return await self._try(max_age_s)
            except _WORTH_ANOTHER_TRY as error:
                logger.info("%s: %s", self._name, error)
                wait_s, max_age_s = 0.0, None
                nobody = isinstance(error, MissingBlocksError) or error.peer is None
                if nobody or self._retried:
                    # Nobody is left to be tried. Servers are looked up only now, because that takes
                    # seconds when those who are asked are lost too.
                    wait_s, max_age_s = pause_s * random.uniform(0.5, 1.5), FRESH_S
                    pause_s = min(most_s, 2 * pause_s)
                if self._swarm.time + wait_s >= self._ends:
                    raise self._in_vain(error) from error
            await asyncio.sleep(wait_s)

    @property
    def _name(self) -> str:
        return f"session {self._old.session.hex()[:8]} looks for another route"

    def _in_vain(self, error: SwarmError) -> MissingBlocksError:
        """Names the blocks that nobody serves, or else those that nobody took over."""
        if isinstance(error, MissingBlocksError):
            blocks = error.blocks
        elif self._retried:
            blocks = self._retried
        else:
            lost = self._lost()
            blocks = tuple(f"{h.start}:{h.end}" for h in self._old.hops if h.peer in lost)
        return MissingBlocksError(
            f"session {self._old.session.hex()[:8]} has lost its servers of blocks "
            f"{', '.join(blocks)}, and no others took over within "
            f"{self._swarm.settings.repair_timeout_s:g} s (last: {error}); start a server for them",
            blocks,
        )

    async def _try(self, max_age_s: float | None) -> tuple[Grant, SignedGrant]:
        records = await self._swarm.servers(self._target.checkpoint, max_age_s)
        await self._look_round(records)
        hops = self._choose(records, last_resort=max_age_s is not None)
        lost = set(self._lost())
        kept = {hop for hop in self._old.hops if hop.peer not in lost}
        fresh = tuple(index for index, hop in enumerate(hops) if hop not in kept)
        self._router.planned(self._planned, [hops[index] for index in fresh])
        by_peer = {record.peer: record for record in records}
        used = [by_peer[PeerId(hops[index].peer)] for index in fresh]
        left_s = max(0.1, self._ends - self._swarm.time)
        failed = await self._swarm.connect_all(used, min(CONNECT_S, left_s))
        for peer in failed:
            self._swarm.troubles.failed(peer, self._swarm.time)
            self._wary = True
        for error in failed.values():
            raise error
        return await self._open(hops, fresh)

    async def _look_round(self, records: "Sequence[ServerRecord]") -> None:
        """Asks those that may replace the lost ones how busy they are, for many sessions may look
        for others at once; and finds out who is gone although its record is there."""
        lost = set(self._lost())
        gaps = [Span(hop.start, hop.end) for hop in self._old.hops if hop.peer in lost]
        tried = self._avoided() | self._unheard | {PeerId(hop.peer) for hop in self._old.hops}
        online = {server.peer for server in self._target.view(records).online(tried)}
        choice = [record for record in records if record.peer in online]
        most = MANY_PROBED if self._wary else MAX_PROBED
        self._unheard |= await silent_servers(self._swarm, choice, gaps, most)
        self._unheard -= self._heard(records)
        able = [record for record in choice if record.peer not in self._unheard]
        await ask_loads(self._swarm, self._router, able, gaps, LOADS_S)

    def _heard(self, records: "Sequence[ServerRecord]") -> set[PeerId]:
        return set(self._swarm.rtt_s([record.peer for record in records]))

    def _avoided(self) -> set[PeerId]:
        """A server that is lost may be there again, also with the session, but not at once."""
        full = set() if self._may_wait else self._full
        return self._swarm.in_trouble() | full | set(self._barred())

    def _choose(self, records: "Sequence[ServerRecord]", *, last_resort: bool) -> tuple[Hop, ...]:
        """`last_resort`: where nobody else is left, servers that failed lately may be back, and
        those whose blocks are not what others announce are taken."""
        view = self._target.view(records)
        self._router.closed(self._planned)
        self._retried = ()
        silent = self._unheard
        avoided = self._avoided() | silent
        doubted = self._swarm.doubted(records, tell=True)
        strangers = {record.peer for record in records} - self._heard(records)
        try:
            if self._wary:
                with contextlib.suppress(MissingBlocksError):
                    return self._replaced(view, avoided | doubted | strangers)
            return self._replaced(view, avoided | doubted)
        except MissingBlocksError as missing:
            self._unheard = set()  # they may be back
            if self._full and not self._urgent():
                # The session keeps its room while it asks: two that waited in line for each
                # other's would wait in vain, and all behind them. So it only asks again.
                self._full.clear()
            elif self._full and not self._may_wait:
                self._may_wait = True
            elif last_resort and self._urgent():
                failed = self._swarm.troubles.left_out(self._swarm.time)
                hops = self._replaced(view, avoided - (failed - silent - set(self._barred())))
                self._retried = missing.blocks
                warn_of_doubted(hops, doubted)
                return hops
            raise

    def _replaced(self, view: SwarmView, avoided: Collection[PeerId]) -> tuple[Hop, ...]:
        return replaced_route(
            view,
            self._router,
            self._old.hops,
            self._lost(),
            rtt_s=self._swarm.rtt_s([server.peer for server in view.servers]),
            tokens_needed=self._old.rows * self._old.length,
            avoid=avoided,
            mix_numerics=self._swarm.settings.mix_numerics,
        )

    async def _open(
        self, hops: tuple[Hop, ...], fresh: tuple[int, ...]
    ) -> tuple[Grant, SignedGrant]:
        # A number of its own for each try, so that no answer is taken for another's.
        self._grant = msgspec.structs.replace(self._old, route=self._grant.route + 1, hops=hops)
        self._gone.clear()
        self._release_known(fresh)
        self._opening = opening = OpeningRun(
            self._swarm,
            self._grant,
            deadline_s=max(0.0, self._ends - self._swarm.time),
            hops=fresh,
            may_wait=self._may_wait,
        )
        try:
            await opening.run()
            await self._between_steps()
        except asyncio.CancelledError:
            # It may be open there by now.
            self._close_all(fresh)
            raise
        except CacheFullError as error:
            self._full.add(PeerId(error.peer or ""))
            raise
        except (RefusedError, PeerError, CheckpointError) as error:
            if error.peer:
                self._swarm.troubles.failed(PeerId(error.peer), self._swarm.time)
            raise
        finally:
            self._opening = None
        used = [PeerId(hop.peer) for hop in hops]
        kept = {peer for index, peer in enumerate(used) if index not in fresh}
        doubted = (self._gone | set(self._barred())) & set(used) | set(self._lost()) & kept
        if doubted:
            self._close_all(fresh)
            text = f"{min(doubted)} was lost while the session opened on its new route"
            raise UnreachablePeerError(text, min(doubted))
        for index in fresh:
            self._swarm.troubles.served(PeerId(hops[index].peer))
        return self._grant, opening.signed

    async def _between_steps(self) -> None:
        """Hops that serve yet answer first what is under way, so that it is computed only once."""
        self._step_ended.clear()
        if self._decodes() and not self._urgent():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STEP_S):
                    await self._step_ended.wait()

    def _release_known(self, fresh: tuple[int, ...]) -> None:
        """A hop that comes back with other blocks, or after it was lost, may still know us."""
        known = {hop.peer for hop in self._old.hops}
        self._close_all(index for index in fresh if self._grant.hops[index].peer in known)

    def _close_all(self, hops: Iterable[int]) -> None:
        for index in hops:
            peer = PeerId(self._grant.hops[index].peer)
            try:
                self._swarm.send(peer, Close(self._old.session), session=self._old.session)
            except PeerError as error:
                logger.debug("%s: %s", self._name, error)
