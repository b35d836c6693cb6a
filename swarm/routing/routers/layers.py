"""Routers over the graph of (block, server): the cheapest chain, and one among near-equals."""

import random
from dataclasses import replace

import numpy as np

from swarm.routing.experience import Experience, Share
from swarm.routing.layer_graph import Chain, Part, chain_cost_s, cheapest_chain
from swarm.routing.network import Floats, Network
from swarm.routing.no_route import no_route
from swarm.routing.router import (
    Route,
    RouteCosts,
    RouteRequest,
    Trusting,
    decode_block_s,
    decode_fixed_s,
)
from swarm.routing.routes import route_over
from swarm.routing.server_index import Candidates, ServerIndex
from swarm.routing.view import ServerView, SwarmView
from swarm.sessions.messages import MAX_HOPS
from swarm.spans import PeerId, SessionId

EXACT_UP_TO = 150
"""Servers; with more of them a router follows only the cheapest exits."""
PRUNE_WIDTH = 12
_PRICES = 12
_WORTH_MOVING = 0.25
"""Share of the rest of a session's time that another route must save."""


class LayerRouter(Trusting):
    """Parallax' phase 2 (arXiv 2509.26182) with partial spans and its load in the unit of time.

    The load is the wait that servers announce, and what the rows of this client's own sessions add
    to a pass that the announcement cannot contain yet. A session ends: its load is subtracted.
    """

    def __init__(self, costs: RouteCosts, *, width: int | None = PRUNE_WIDTH) -> None:
        """`width`: exits that are followed at a boundary in a large swarm; None: always all."""
        self._costs = costs
        self._width = width
        self._index = ServerIndex(costs)
        self._announced: dict[PeerId, ServerView] = {}
        self._sessions: dict[SessionId, tuple[tuple[PeerId, ServerView], ...]] = {}
        """Over which servers, and what each had announced when the session was opened."""

    def route(self, view: SwarmView, network: Network, request: RouteRequest) -> Route:
        """Raises MissingBlocksError."""
        seen = self._seen(view)
        extra_s = self._extra_s(view, seen)
        found = self._index.candidates(seen, network, request, extra_s=extra_s)
        exact = self._width is None or len(view.servers) <= EXACT_UP_TO
        chain = _short_chain(found, None if exact else self._width)
        if chain is None:
            raise no_route(view, request)
        chain = self._among_equals(found, chain)
        route = route_over(chain, seen.servers, network, request, self._costs)
        self._announced = {
            view.servers[part.server].peer: view.servers[part.server] for part in chain.parts
        }
        return route

    def _seen(self, view: SwarmView) -> SwarmView:
        return view

    def _among_equals(self, found: Candidates, chain: Chain) -> Chain:
        return chain

    def opened(self, session: SessionId, route: Route) -> None:
        """The session's rows count at its servers until these announce anew."""
        self._sessions[session] = tuple(
            (PeerId(hop.peer), self._announced[PeerId(hop.peer)])
            for hop in route.hops
            if hop.peer in self._announced
        )

    def closed(self, session: SessionId) -> None:
        """Its load is gone."""
        self._sessions.pop(session, None)

    def _extra_s(self, view: SwarmView, seen: SwarmView) -> Floats | None:
        """`[n]`: by which our own sessions lengthen a decode step at each server."""
        if not self._sessions:
            return None
        rows: dict[PeerId, list[ServerView]] = {}
        for servers in self._sessions.values():
            for peer, announced in servers:
                rows.setdefault(peer, []).append(announced)
        extra = np.zeros(len(view.servers))
        row_s = self._index.row_s_of(seen)
        for number, server in enumerate(view.servers):
            for announced in rows.get(server.peer, ()):
                if announced == server:
                    extra[number] += row_s[number]
        return extra


def _short_chain(found: Candidates, width: int | None) -> Chain | None:
    """The cheapest chain; if it has more hops than a session takes, hops are made dearer until it
    has not (or it has the fewest that there are)."""
    chain = cheapest_chain(found, width)
    price_s = chain.cost_s / MAX_HOPS if chain is not None else 0.0
    for _ in range(_PRICES):
        if chain is None or len(chain.parts) <= MAX_HOPS:
            break
        chain = cheapest_chain(replace(found, fixed_s=found.fixed_s + price_s), width)
        price_s *= 4
    return chain


class TwoChoicesRouter(LayerRouter):
    """The cheapest chain, then for each hop the less loaded of two servers drawn from those that
    would serve it nearly as well.

    Clients with equal views would all take the same chain until its servers announce their load;
    two random choices spread them (Mitzenmacher, "The power of two choices in randomized load
    balancing", 1996) without asking anybody. A chain is at most `near_equal` worse than the
    cheapest. Speeds are what the client's own requests have shown of them (`Experience`), where
    they have shown something.
    """

    def __init__(
        self,
        costs: RouteCosts,
        rng: random.Random,
        *,
        near_equal: float = 0.05,
        width: int | None = PRUNE_WIDTH,
    ) -> None:
        super().__init__(costs, width=width)
        self._rng = rng
        self._near_equal = near_equal
        self._experience = Experience()
        self._promises: dict[SessionId, tuple[tuple[Share, ...], float]] = {}
        """Of each session what its servers announced, and what the ways take of a token."""

    def _seen(self, view: SwarmView) -> SwarmView:
        return self._experience.seen(view)

    def opened(self, session: SessionId, route: Route) -> None:
        """As before; and what its servers promise is remembered until it closes."""
        super().opened(session, route)
        shares: list[Share] = []
        believed_s = 0.0
        for hop in route.hops:
            server = self._announced.get(PeerId(hop.peer))
            if server is None:
                return
            compute_s = decode_fixed_s(server) + (hop.end - hop.start) * decode_block_s(server)
            believed_s += compute_s * self._experience.factor(server)
            shares.append(Share(server, compute_s))
        self._promises[session] = tuple(shares), route.tpot_s - believed_s

    def measured(self, session: SessionId, tpot_s: float) -> None:
        """What is more than the ways take is its servers' time."""
        if session in self._promises:
            shares, ways_s = self._promises[session]
            self._experience.observed(shares, max(0.0, tpot_s - ways_s))

    def much_better(
        self, tpot_s: float, view: SwarmView, network: Network, request: RouteRequest
    ) -> Route | None:
        """One that saves a good part of the time that the session still takes, with the time until
        the new hops have its cache."""
        route = self.route(view, network, request)
        stays_s = request.output_tokens * tpot_s
        moves_s = route.ttft_s + request.output_tokens * route.tpot_s
        return route if moves_s < (1 - _WORTH_MOVING) * stays_s else None

    def closed(self, session: SessionId) -> None:
        """Its load is gone."""
        super().closed(session)
        self._promises.pop(session, None)

    def _among_equals(self, found: Candidates, chain: Chain) -> Chain:
        parts = list(chain.parts)
        budget_s = self._near_equal * chain.cost_s
        for position, part in enumerate(parts):
            others = [other.server for other in parts if other is not part]
            equals = self._equals(found, parts, position, budget_s / len(parts), others)
            choices = self._rng.sample(equals, min(2, len(equals)))
            # `fixed_s` holds the waits; what is nearer or computes faster is no load.
            server = min(choices, key=lambda one: found.load_s[one])
            parts[position] = Part(server, part.start, part.end)
        return Chain(chain_cost_s(found, parts), tuple(parts))

    def _equals(
        self,
        found: Candidates,
        parts: list[Part],
        position: int,
        budget_s: float,
        others: list[int],
    ) -> list[int]:
        """The servers (this hop's own among them) that cost at most `budget_s` more there."""
        part = parts[position]
        able = found.usable & (found.start <= part.start) & (part.end <= found.end)
        able &= found.group == found.group[part.server]
        able[others] = False
        servers = np.flatnonzero(able)
        cost = found.fixed_s[servers] + found.block_s[servers] * (part.end - part.start)
        if position == 0:
            cost = cost + found.enter_s[servers]
        else:
            cost = cost + found.between_s(np.array([parts[position - 1].server]), servers)[0]
        if position == len(parts) - 1:
            cost = cost + found.leave_s[servers]
        else:
            cost = cost + found.between_s(servers, np.array([parts[position + 1].server]))[:, 0]
        own = float(cost[servers == part.server][0])
        return [int(server) for server in servers[cost <= own + budget_s]]
