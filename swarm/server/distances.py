"""How far this server is from others: measured round trips, and a coordinate made of them."""

import asyncio
import logging
import random
from collections.abc import Collection, Mapping, Sequence

from swarm.dht.directory import Directory
from swarm.dht.records import ServerRecord
from swarm.errors import PeerError
from swarm.routing.coordinates import Coordinate, Vivaldi
from swarm.routing.view import ServerState
from swarm.spans import PeerId, Span

logger = logging.getLogger("swarm.server")

NEXT_HOPS_ASKED = 4
OTHERS_ASKED = 2
"""In each round; distances to any others are what makes a coordinate good."""
TIMEOUT_S = 2.0
LATE_S = 0.5
"""By which a deadline may pass unnoticed; if it is more, this process does not run as it should."""
MAX_FAILURES = 2
"""A server that does not answer so many times in a row is taken for dead."""
SILENT_ASKED = 16
"""In each round, of those that did not answer; anybody may write any number of servers into the
directory that never do."""
REMEMBERED_ROUNDS = 30


def whom_to_ask(
    records: Sequence[ServerRecord], me: PeerId, span: Span, rng: random.Random
) -> list[PeerId]:
    """Some of those that may come after `span` in a chain, and a few others."""
    others = [
        one.peer
        for one in records
        if one.peer != me and one.state in (ServerState.ONLINE, ServerState.JOINING)
    ]
    spans = {one.peer: one.span for one in records}
    following = [peer for peer in others if span.end in spans[peer]]
    asked = rng.sample(following, min(NEXT_HOPS_ASKED, len(following)))
    rest = [peer for peer in others if peer not in asked]
    return asked + rng.sample(rest, min(OTHERS_ASKED, len(rest)))


class Distances:
    """Measured a few peers at a time; links that are up are measured anyway."""

    def __init__(self, directory: Directory, me: PeerId, rng: random.Random) -> None:
        self._directory = directory
        self._me = me
        self._rng = rng
        self._vivaldi = Vivaldi(rng)
        self._measured: dict[PeerId, tuple[int, float]] = {}
        """The round in which a round trip was measured, and what it was (s)."""
        self._failures: dict[PeerId, int] = {}
        self._answered = 0
        """How many were heard in the last round."""
        self._round = 0

    @property
    def coordinate(self) -> Coordinate | None:
        """None before anything was measured."""
        return self._vivaldi.coordinate if self._measured else None

    def rtt_s(self, following: Collection[PeerId]) -> dict[PeerId, float]:
        """What was measured lately, of those that may follow us."""
        return {peer: rtt for peer, (_, rtt) in self._measured.items() if peer in following}

    def silent(self) -> set[PeerId]:
        """Servers that do not answer, whatever their records say.

        If nobody answers, our own line is the likelier fault, and their records are believed.
        """
        if not self._answered:
            return set()
        return {peer for peer, count in self._failures.items() if count >= MAX_FAILURES}

    async def survey(
        self, records: Sequence[ServerRecord], span: Span, linked_s: Mapping[PeerId, float]
    ) -> bool:
        """One round; True: somebody has just failed to answer, and is to be asked again soon.

        `linked_s`: round trips of the links that are up.
        """
        self._round += 1
        by_peer = {one.peer: one for one in records}
        self._failures = {p: n for p, n in self._failures.items() if p in by_peer}
        silent = list(self._failures)
        if len(silent) > SILENT_ASKED:
            silent = self._rng.sample(silent, SILENT_ASKED)
        asked = {*whom_to_ask(records, self._me, span, self._rng), *silent}
        found = {peer: rtt for peer, rtt in linked_s.items() if peer in by_peer}
        doubted, loop = False, asyncio.get_running_loop()

        async def ask(peer: PeerId) -> None:
            nonlocal doubted
            began = loop.time()
            try:
                found[peer] = await self._directory.round_trip_s(peer, TIMEOUT_S)
            except PeerError as error:
                logger.debug("a round trip was not measured: %s", error)
                if loop.time() - began > TIMEOUT_S + LATE_S:
                    return  # it is we who were held up
                self._failures[peer] = self._failures.get(peer, 0) + 1
                doubted |= self._failures[peer] < MAX_FAILURES

        await asyncio.gather(*(ask(peer) for peer in asked if peer not in found))
        self._answered = len(found)
        for peer, rtt_s in found.items():
            self._failures.pop(peer, None)
            self._measured[peer] = self._round, rtt_s
            theirs = by_peer[peer].coordinate
            if theirs is not None:
                self._vivaldi.observe(peer, rtt_s, theirs)
        self._forget(by_peer)
        return doubted

    def _forget(self, by_peer: Collection[PeerId]) -> None:
        oldest = self._round - REMEMBERED_ROUNDS
        for peer, (measured, _) in list(self._measured.items()):
            if peer not in by_peer or measured < oldest:
                del self._measured[peer]
                self._vivaldi.forget(peer)
