"""Which way the sessions of this client take: what it measured, over what servers announce."""

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarm.errors import SwarmError
from swarm.routing.coordinates import Coordinate, Vivaldi
from swarm.routing.network import KnownNetwork
from swarm.routing.router import (
    ChainCost,
    Route,
    RouteCosts,
    RouteRequest,
    cost_of,
    row_block_s,
)
from swarm.routing.routers.layers import TwoChoicesRouter
from swarm.routing.view import ServerView, SwarmView
from swarm.sessions.messages import Hop
from swarm.spans import PeerId, SessionId

if TYPE_CHECKING:
    from swarm.dht.records import ServerRecord

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 128
"""What a session is taken to be when its route is chosen: nothing says how long it will be."""
SEEN_HALVES_S = 60.0
"""After so long half of what was seen of a server is believed."""
MIN_SEEN_S = 1e-4
WAYS_KEPT = 8
UNSURE, FIRST_ROUNDS = 0.5, 10
"""While our own coordinate has a larger error, measurements are gone through so often."""
HEARD_FRESH_S = 20.0
"""So long what a server said itself counts more than its record."""


@dataclass(frozen=True)
class _Heard:
    """What a server itself said of its load."""

    at: float
    sessions: int
    queue_wait_ms: float
    cache_tokens_free: int


@dataclass
class _Running:
    """A session of this client."""

    hops: tuple[Hop, ...]
    since: float


class ClientRouter:
    """The routes of all sessions of one client, over `TwoChoicesRouter`. Times: one clock, in s.

    Delays between servers come from what they announce of next hops, from network coordinates, or
    are guessed. A server's wait is what it announces or said last, what the sessions there add to
    a decode pass, and what this client saw of it beyond what was predicted.
    """

    def __init__(
        self,
        me: PeerId,
        rng: random.Random,
        clock: Callable[[], float],
        *,
        activation_bytes: float = 0.0,
        mix_numerics: bool = False,
    ) -> None:
        """`clock`: seconds that never go back; `activation_bytes`: of one token on the wire;
        `mix_numerics`: whether one chain may have servers that compute differently."""
        self._clock = clock
        self._me = me
        self._mix_numerics = mix_numerics
        self._costs = RouteCosts(activation_bytes=activation_bytes, mix_numerics=mix_numerics)
        self._router = TwoChoicesRouter(self._costs, rng, fresh_loads=True)
        self._vivaldi = Vivaldi(rng)
        self._records: dict[PeerId, ServerRecord] = {}
        self._read_at: dict[PeerId, float] = {}
        self._next_hops_s: Mapping[tuple[PeerId, PeerId], float] = {}
        self._heard: dict[PeerId, _Heard] = {}
        self._excess: dict[PeerId, tuple[float, float]] = {}
        """When it was seen, and how much longer a step took than predicted (s)."""
        self._ways: dict[frozenset[str], float] = {}
        """The same for the last few chains, in the order in which they were seen."""
        self._running: dict[SessionId, _Running] = {}
        self._rates: dict[PeerId, float] = {}

    # ---- what is known

    def learn(self, records: "Iterable[ServerRecord]") -> None:
        """The newest list of servers."""
        now = self._clock()
        from swarm.dht.distances import next_hops_s

        known = {record.peer: record for record in records}
        for peer in self._records.keys() - known.keys():
            self._rates.pop(peer, None)
            self._vivaldi.forget(peer)
        for peer, record in known.items():
            before = self._records.get(peer)
            if before is None or before.sequence != record.sequence:
                self._read_at[peer] = now
        self._records = known
        self._next_hops_s = next_hops_s(known.values())
        self._read_at = {p: at for p, at in self._read_at.items() if p in known}
        self._heard = {p: one for p, one in self._heard.items() if p in known}
        self._excess = {p: one for p, one in self._excess.items() if p in known}

    def heard(self, peer: PeerId, sessions: int, queue_wait_ms: float, free: int) -> None:
        """What the server itself says now."""
        self._heard[peer] = _Heard(self._clock(), sessions, queue_wait_ms, free)

    def heard_lately(self, peer: PeerId, age_s: float) -> bool:
        """Whether it has said something in the last `age_s`."""
        said = self._heard.get(peer)
        return said is not None and self._clock() - said.at <= age_s

    def saw_rate(self, peer: PeerId, bytes_per_s: float) -> None:
        """What the way to the server delivers, as our link measured it."""
        self._rates[peer] = bytes_per_s

    def saw_step(self, hops: Sequence[Hop], excess_s: float) -> None:
        """A step over `hops` took so much longer than predicted; each hop is blamed for its part.
        Which one it was shows when sessions go other ways: what all ways have in common is nobody's
        fault, and is expected of servers that were not tried, too."""
        each_s, peers = max(0.0, excess_s) / len(hops), frozenset(hop.peer for hop in hops)
        for hop in hops:
            self._excess[PeerId(hop.peer)] = self._clock(), each_s
        self._ways.pop(peers, None)
        self._ways[peers] = each_s
        while len(self._ways) > WAYS_KEPT:
            del self._ways[next(iter(self._ways))]

    # ---- sessions

    def opened(self, session: SessionId, hops: Sequence[Hop]) -> None:
        """The session runs over `hops`, in place of those that it had."""
        self._running[session] = _Running(tuple(hops), self._clock())

    def planned(self, session: SessionId, hops: Sequence[Hop]) -> None:
        """A session is about to open over `hops`: it counts there, whatever servers say, until it
        is closed. Sessions that look for a route at the same time see each other by that."""
        self._running[session] = _Running(tuple(hops), float("inf"))

    def closed(self, session: SessionId) -> None:
        self._running.pop(session, None)

    # ---- routes

    def route(
        self,
        view: SwarmView,
        *,
        rtt_s: Mapping[PeerId, float],
        tokens_needed: int,
        avoid: Collection[PeerId] = (),
        leaving: SessionId | None = None,
    ) -> tuple[Hop, ...]:
        """The chain for a session; of quantized weights, and of servers that are about to move,
        only where no other chain is.

        `rtt_s`: measured round trips from this client; `tokens_needed`: rows x length of the
        session; `avoid`: servers that just failed; `leaving`: a session that is to be routed anew.

        Raises MissingBlocksError when no chain covers all blocks, with the missing runs, and
        SwarmError when every one has more hops than a session takes.
        """
        seen = self._seen(view, leaving)
        network = self._network(rtt_s)
        request = self._request(tokens_needed, avoid)
        for servers in self._preferred(seen.servers):
            try:
                return self._router.route(replace(seen, servers=servers), network, request).hops
            except SwarmError:  # no chain, or only longer ones than a session takes
                pass
        route: Route = self._router.route(seen, network, request)
        return route.hops

    def _preferred(self, servers: tuple[ServerView, ...]) -> Iterator[tuple[ServerView, ...]]:
        """Whose chain is taken if there is one, best first, before all servers are looked at: who
        quantizes is faster and says other things than the model does; who is about to move would
        have the session moved again."""
        plain = tuple(one for one in servers if not one.numerics.quantized)
        for wanted in (servers,) if self._mix_numerics else (plain, servers):
            staying = tuple(one for one in wanted if one.moving_to is None)
            for fewer in (staying, wanted):
                if len(fewer) < len(servers):
                    yield fewer

    def step_s(
        self,
        view: SwarmView,
        hops: Sequence[Hop],
        rtt_s: Mapping[PeerId, float],
        *,
        leaving: SessionId | None = None,
        announced: bool = False,
    ) -> float | None:
        """What a decode step over `hops` is predicted to take; None if one of them is not known.

        `announced`: by what servers say alone, without what this client saw of them.
        """
        cost = self._cost(view if announced else self._seen(view, leaving), hops, rtt_s)
        return None if cost is None else cost.tpot_s

    def chunk_s(
        self, view: SwarmView, hops: Sequence[Hop], rtt_s: Mapping[PeerId, float], tokens: int
    ) -> float | None:
        """What `tokens` of a prompt are predicted to take through all of `hops`, by what servers
        say alone; None if one of them is not known."""
        cost = self._cost(view, hops, rtt_s, tokens)
        return None if cost is None else cost.ttft_s

    def _cost(
        self,
        view: SwarmView,
        hops: Sequence[Hop],
        rtt_s: Mapping[PeerId, float],
        prompt_tokens: int = PROMPT_TOKENS,
    ) -> ChainCost | None:
        servers = {server.peer: server for server in view.servers}
        if any(hop.peer not in servers for hop in hops):
            return None
        used = [servers[PeerId(hop.peer)] for hop in hops]
        request = replace(self._request(0, ()), prompt_tokens=prompt_tokens)
        return cost_of(hops, used, self._network(rtt_s), request, self._costs)

    def _request(self, tokens_needed: int, avoid: Collection[PeerId]) -> RouteRequest:
        return RouteRequest(self._me, PROMPT_TOKENS, OUTPUT_TOKENS, tokens_needed, frozenset(avoid))

    def _network(self, rtt_s: Mapping[PeerId, float]) -> KnownNetwork:
        from swarm.dht.distances import coordinates

        limits = {
            peer: 1e6 * record.max_upload_mbit / 8
            for peer, record in self._records.items()
            if record.max_upload_mbit > 0
        }
        places = coordinates(self._records.values())
        if (here := self._place(rtt_s, places)) is not None:
            places[self._me] = here
        rates = {p: min(rate, limits.get(p, rate)) for p, rate in self._rates.items()}
        return KnownNetwork(
            self._me,
            rtt_s,
            next_hops_s=self._next_hops_s,
            coordinates=places,
            bytes_per_s=limits | rates,
        )

    def _place(
        self, rtt_s: Mapping[PeerId, float], places: Mapping[PeerId, Coordinate]
    ) -> Coordinate | None:
        """Ours, by which servers are guessed that we have no link to; None: nothing is measured."""
        known = [(peer, rtt, places[peer]) for peer, rtt in rtt_s.items() if peer in places]
        for _ in range(1 if self._vivaldi.coordinate.error < UNSURE else FIRST_ROUNDS):
            for peer, rtt, place in known:
                self._vivaldi.observe(peer, rtt, place)
        return self._vivaldi.coordinate if known else None

    # ---- what is seen, over what is announced

    def _seen(self, view: SwarmView, leaving: SessionId | None) -> SwarmView:
        now = self._clock()
        servers = tuple(self._seen_server(server, now, leaving) for server in view.servers)
        return replace(view, servers=servers)

    def _seen_server(self, server: ServerView, now: float, leaving: SessionId | None) -> ServerView:
        heard = self._heard.get(server.peer)
        if heard is not None and now - heard.at > HEARD_FRESH_S:
            heard = None
        said_at = self._read_at.get(server.peer, float("-inf"))
        sessions, wait_ms, free = server.sessions, server.queue_wait_ms, server.cache_tokens_free
        if heard is not None and heard.at > said_at:
            sessions, wait_ms, said_at = heard.sessions, heard.queue_wait_ms, heard.at
            free = min(heard.cache_tokens_free, server.cache_tokens_total)
        for session, running in self._running.items():
            if any(hop.peer == server.peer for hop in running.hops):
                if session == leaving:
                    sessions -= running.since < said_at
                else:
                    sessions += running.since >= said_at
        wait_s = wait_ms / 1e3 + self._excess_s(server.peer, now)
        wait_s += max(0, sessions) * row_block_s(server) * len(server.span)
        if wait_s * 1e3 == server.queue_wait_ms and free == server.cache_tokens_free:
            return server
        return replace(server, queue_wait_ms=1e3 * wait_s, cache_tokens_free=free)

    def _excess_s(self, peer: PeerId, now: float) -> float:
        """What is believed of it; it fades to what all ways have in common."""
        usual_s = min(self._ways.values()) if len(self._ways) > 1 else 0.0
        at, seen_s = self._excess.get(peer, (now, usual_s))
        excess_s = usual_s + (seen_s - usual_s) * 0.5 ** ((now - at) / SEEN_HALVES_S)
        return excess_s if excess_s > MIN_SEEN_S else 0.0
