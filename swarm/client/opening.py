"""Finding a route for a new session and opening it on every hop, with other routes if one fails."""

import asyncio
import logging
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from swarm.client.agreement import warn_of_doubted
from swarm.client.chain import OnPrefill
from swarm.client.loads import ask_loads
from swarm.client.opening_run import OpeningRun
from swarm.client.probing import MANY_PROBED, MAX_PROBED, covered, silent_servers
from swarm.client.remote_session import RemoteSession
from swarm.client.runtime import Runtime
from swarm.client.swarm import Swarm
from swarm.client.target import Target
from swarm.errors import (
    CacheFullError,
    CheckpointError,
    MissingBlocksError,
    PeerError,
    RefusedError,
    SwarmError,
)
from swarm.printable import listed
from swarm.routing.view import SwarmView
from swarm.sessions.messages import Grant, Hop
from swarm.spans import PeerId, SessionId, Span
from swarm.wire.versions import check_versions

if TYPE_CHECKING:
    from swarm.dht.records import ServerRecord

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5


async def open_session(
    runtime: Runtime,
    swarm: Swarm,
    target: Target,
    rows: int,
    length: int,
    least: int | None = None,
    on_prefill: OnPrefill | None = None,
) -> RemoteSession:
    """Open a session of `rows` x `length` slots over all blocks of the model.

    Where nobody has that much room now, `least` slots a row are enough (None: `length` are).

    A server that cannot be reached or refuses is avoided on the next try. One that is only full is
    waited for, but not before every route around it has been tried.
    Raises MissingBlocksError when no servers are left for some blocks, CacheFullError when no
    room was given in time, CheckpointError when the swarm serves another checkpoint,
    ProtocolVersionError when all servers speak another version of the protocol.
    """
    return await _Search(runtime, swarm, target, rows, length, least or length, on_prefill).run()


class _Search:
    def __init__(
        self,
        runtime: Runtime,
        swarm: Swarm,
        target: Target,
        rows: int,
        length: int,
        least: int,
        on_prefill: OnPrefill | None,
    ) -> None:
        self._runtime = runtime
        self._swarm = swarm
        self._target = target
        self._rows, self._length, self._least = rows, length, least
        self._on_prefill = on_prefill
        self._settings = swarm.settings
        self._router = swarm.router(target)
        self._planned = SessionId(secrets.token_bytes(16))
        """Counts where the session is going to be, so that others see it before it is open."""
        self._avoid: dict[PeerId, int] = {}
        """Servers that failed, with the number of the record that led us there."""
        self._unheard: set[PeerId] = set()
        """Servers that were asked for a hello, and have not answered."""
        self._full: set[PeerId] = set()
        """Servers that had no room when they were asked."""
        self._may_wait = False
        """No route is left around the full ones: wait in line."""
        self._patient = False
        """No route is left around those in trouble."""
        self._last_error: SwarmError | None = None
        self._ends = swarm.time + self._settings.open_timeout_s
        self._missing_since: float | None = None

    async def run(self) -> RemoteSession:
        try:
            return await self._run()
        finally:
            self._router.closed(self._planned)

    async def _run(self) -> RemoteSession:
        max_age_s: float | None = None
        while True:
            records = await self._swarm.servers(self._target.checkpoint, max_age_s)
            max_age_s = None
            try:
                hops = await self._choose(records)
            except MissingBlocksError as missing:
                if self._full and not self._may_wait:
                    self._settle_for_less()
                else:
                    check_versions(record.protocol for record in records)
                    await self._wait_for_blocks(missing)
                    max_age_s = 0.0
                continue
            self._router.planned(self._planned, hops)
            self._missing_since = None
            by_peer = {record.peer: record for record in records}
            used = [by_peer[PeerId(hop.peer)] for hop in hops]
            failed = await self._swarm.connect_all(used, self._settings.connect_timeout_s)
            for peer, error in failed.items():
                self._avoid_peer(by_peer[peer], error)
            if failed:
                if self._swarm.time >= self._ends:
                    raise next(iter(failed.values()))
                continue
            try:
                return await self._open(hops)
            except CacheFullError as error:
                peer = PeerId(error.peer or "")
                if self._may_wait or peer in self._full or self._swarm.time >= self._ends:
                    raise
                logger.info("a route around it is looked for: %s", error)
                self._full.add(peer)
            except (RefusedError, PeerError, CheckpointError) as error:
                peer = PeerId(error.peer or "")
                if peer not in by_peer or self._swarm.time >= self._ends:
                    raise
                if self._swarm.has_link(peer) and not self._swarm.hears(peer):
                    # It may come back; whoever else serves its blocks is sooner.
                    logger.info("another route is looked for: %s", error)
                    self._swarm.troubles.suspect(peer, self._swarm.time)
                else:
                    self._avoid_peer(by_peer[peer], error)

    def _settle_for_less(self) -> None:
        """No route is left around the full servers: ask for less, or else wait in line."""
        if self._length > self._least:
            self._length = self._least
            self._full.clear()
        else:
            self._may_wait = True

    async def _choose(self, records: "Sequence[ServerRecord]") -> tuple[Hop, ...]:
        view = self._target.view(records)
        full = () if self._may_wait else self._full
        avoid = {
            record.peer
            for record in records
            if record.peer in full or record.sequence <= self._avoid.get(record.peer, -1)
        }
        in_trouble = self._swarm.in_trouble()
        online = {server.peer for server in view.online(avoid | in_trouble)}
        choice = [record for record in records if record.peer in online]
        wanted = [Span(0, view.num_blocks)]
        in_trouble |= await self._ask_around(choice, wanted)
        await ask_loads(self._swarm, self._router, choice, wanted)
        doubted = self._swarm.doubted(records, tell=True)
        # After a server that failed, those that answer are taken before those that only say so.
        strangers = online - set(self._swarm.rtt_s(online)) if self._avoid else set()
        self._router.closed(self._planned)
        # Better a server that failed lately than none. One with other blocks is the last that is
        # taken: if there are full ones, these are waited for.
        for left_out, self._patient in (
            (avoid | in_trouble | doubted | strangers, False),
            (avoid | in_trouble | doubted, False),
            (avoid | doubted, True),
        ):
            with suppress(MissingBlocksError):
                return self._route(view, left_out)
        hops = self._route(view, avoid | doubted if full else avoid)
        warn_of_doubted(hops, doubted)
        return hops

    async def _ask_around(
        self, choice: "Sequence[ServerRecord]", wanted: Sequence[Span]
    ) -> set[PeerId]:
        """Those that do not answer. After one that failed, others are asked until those that answer
        serve everything, for anybody may announce any number of servers that are not there."""
        while True:
            unasked = [record for record in choice if record.peer not in self._unheard]
            most = MANY_PROBED if self._avoid else MAX_PROBED
            silent = await silent_servers(self._swarm, unasked, wanted, most)
            answered = set(self._swarm.rtt_s([record.peer for record in choice]))
            self._unheard = (self._unheard | silent) - answered
            able = answered - self._swarm.doubted(choice)
            spans = [record.span for record in choice if record.peer in able]
            over = not silent or covered(spans, wanted) or self._swarm.time >= self._ends
            if over or not self._avoid:
                return self._unheard

    def _route(self, view: SwarmView, left_out: Collection[PeerId]) -> tuple[Hop, ...]:
        return self._router.route(
            view,
            rtt_s=self._swarm.rtt_s([server.peer for server in view.servers]),
            tokens_needed=self._rows * self._length,
            avoid=left_out,
        )

    async def _wait_for_blocks(self, missing: MissingBlocksError) -> None:
        """Return when it is worth to look again; raise when it is not."""
        now = self._swarm.time
        if self._missing_since is None:
            self._missing_since = now
            await self._check_model(missing)
        if now - self._missing_since >= self._settings.missing_timeout_s or now >= self._ends:
            text = str(missing)
            if self._last_error is not None:
                text += f" (last: {self._last_error})"
            raise MissingBlocksError(text, missing.blocks) from self._last_error
        await asyncio.sleep(LOOK_AGAIN_S)

    async def _check_model(self, missing: MissingBlocksError) -> None:
        """Is it another checkpoint that is served here?"""
        if missing.blocks != (f"0:{self._target.num_blocks}",):
            return
        models = await self._swarm.models()
        if not models or any(one.checkpoint == self._target.checkpoint for one in models):
            return
        served = [f"{one.model} ({one.checkpoint[:8]})" for one in models]
        raise CheckpointError(
            f"this swarm serves {listed(served)}, not {self._target.name} "
            f"({self._target.checkpoint[:8]}); load the checkpoint that it serves"
        )

    def _avoid_peer(self, record: "ServerRecord", error: SwarmError) -> None:
        logger.info("another route is looked for: %s", error)
        self._avoid[record.peer] = record.sequence
        self._swarm.troubles.failed(record.peer, self._swarm.time)
        self._last_error = error

    async def _open(self, hops: tuple[Hop, ...]) -> RemoteSession:
        grant = Grant(
            session=secrets.token_bytes(16),
            route=0,
            checkpoint=self._target.checkpoint,
            hops=hops,
            client=self._swarm.identity.peer_id,
            rows=self._rows,
            length=self._length,
            dtype=self._target.dtype,
            lifetime_s=self._settings.session_lifetime_s,
        )
        opened: list[RemoteSession] = []

        def on_opened() -> None:
            session = RemoteSession(
                self._runtime, self._swarm, self._target, self._router, grant, self._on_prefill
            )
            self._swarm.attach(grant.session, session)
            opened.append(session)

        run = OpeningRun(
            self._swarm,
            grant,
            deadline_s=max(0.0, self._ends - self._swarm.time),
            may_wait=self._may_wait,
            patient=self._patient,
            on_opened=on_opened,
        )
        self._swarm.attach(grant.session, run)
        self._router.opened(SessionId(grant.session), hops)
        self._router.closed(self._planned)
        try:
            await run.run()
        except BaseException:  # also cancelled, perhaps when the session was there already
            self._router.closed(SessionId(grant.session))
            self._swarm.detach(grant.session)
            for session in opened:
                session.close()
            raise
        for hop in hops:
            self._swarm.troubles.served(PeerId(hop.peer))
        return opened[0]
