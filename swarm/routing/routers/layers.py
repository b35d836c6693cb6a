"""Routers over the graph of (block, server): the cheapest chain, and one among near-equals."""

import random
from dataclasses import replace

import numpy as np

from swarm.routing.experience import Experience, Share
from swarm.routing.layer_graph import Chain, Part, chain_cost_s, cheapest_chain
from swarm.routing.network import Floats, Indices, Network
from swarm.routing.no_route import no_route
from swarm.routing.router import (
    Route,
    RouteCosts,
    RouteRequest,
    Trusting,
    decode_block_s,
    decode_fixed_s,
    prefill_block_s,
    request_weights,
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
_OLD_LOADS = 3.0
"""What a server may cost more by an old load and still be drawn, in what near-equals may."""
_SURE = 2.0
"""Standard deviations by which a server must have proved slower to be no equal."""


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
        chain = self._among_equals(found, chain, view, request)
        route = route_over(chain, seen.servers, network, request, self._costs)
        self._announced = {
            view.servers[part.server].peer: view.servers[part.server] for part in chain.parts
        }
        return route

    def _seen(self, view: SwarmView) -> SwarmView:
        return view

    def _among_equals(
        self, found: Candidates, chain: Chain, view: SwarmView, request: RouteRequest
    ) -> Chain:
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
    """The cheapest chain, then for each hop one of those that would serve it nearly as well.

    Clients with equal views would all take the same chain until its servers announce their load;
    drawing spreads them without asking anybody. If loads are of this moment, two servers are drawn
    and the less loaded one is taken (Mitzenmacher, "The power of two choices in randomized load
    balancing", 1996). By old loads all would still go where it was empty, and any one is taken
    (the same, "How useful is old information?", 2000); then a somewhat higher load makes a server
    no less an equal. A chain is at most `near_equal` worse than the cheapest, beside loads and what
    is not sure. Speeds are what the client's own requests have shown of them (`Experience`), where
    they have shown something.
    """

    def __init__(
        self,
        costs: RouteCosts,
        rng: random.Random,
        *,
        near_equal: float = 0.05,
        fresh_loads: bool = False,
        width: int | None = PRUNE_WIDTH,
    ) -> None:
        """`fresh_loads`: whether what views say of loads is of this moment."""
        super().__init__(costs, width=width)
        self._rng = rng
        self._near_equal = near_equal
        self._fresh_loads = fresh_loads
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

    def _among_equals(
        self, found: Candidates, chain: Chain, view: SwarmView, request: RouteRequest
    ) -> Chain:
        parts = list(chain.parts)
        budget_s = self._near_equal * chain.cost_s / len(parts)
        doubts = self._experience.doubts(view)
        for position, part in enumerate(parts):
            servers, cost_s = _in_its_place(found, parts, position)
            own = servers == part.server
            more_s = cost_s - cost_s[own]
            known_s, unsure_s = self._learnt_s(servers, part, view, request, doubts)
            chance_s = budget_s
            if not self._fresh_loads:
                known_s += found.wait_s[servers]
                chance_s *= _OLD_LOADS
            # By their words near-equals, and dearer only by what may be chance: who leaves a server
            # for one slow session never learns that it was.
            equal = np.abs(more_s - (known_s - known_s[own])) <= budget_s
            equal &= more_s <= chance_s + _SURE * np.hypot(unsure_s, unsure_s[own])
            equal |= more_s <= budget_s
            server = self._drawn(found, servers[equal].tolist())
            parts[position] = Part(server, part.start, part.end)
        return Chain(chain_cost_s(found, parts), tuple(parts))

    def _drawn(self, found: Candidates, equals: list[int]) -> int:
        if not self._fresh_loads:
            return self._rng.choice(equals)
        # `fixed_s` holds the waits; what is nearer or computes faster is no load.
        choices = self._rng.sample(equals, min(2, len(equals)))
        return min(choices, key=lambda one: found.load_s[one])

    def _learnt_s(
        self, servers: Indices, part: Part, view: SwarmView, request: RouteRequest, doubts: Floats
    ) -> tuple[Floats, Floats]:
        """`[servers]` each: by how much longer than they announce they are believed to take with
        the part, waits left out, and how sure that is (a standard deviation); seconds over the
        request."""
        learnt_s, unsure_s = np.zeros(len(servers)), np.zeros(len(servers))
        for number in np.flatnonzero(doubts[servers]).tolist():
            server = view.servers[servers[number]]
            announced_s = _announced_s(server, part.end - part.start, request)
            learnt_s[number] = (self._experience.factor(server) - 1) * announced_s
            unsure_s[number] = doubts[servers[number]] * announced_s
        return learnt_s, unsure_s


def _in_its_place(found: Candidates, parts: list[Part], position: int) -> tuple[Indices, Floats]:
    """`[servers]` each: who could serve this part of a chain (its server among them), and at what
    cost."""
    part = parts[position]
    able = found.usable & (found.start <= part.start) & (part.end <= found.end)
    able &= found.group == found.group[part.server]
    able[[other.server for other in parts if other is not part]] = False
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
    return servers, cost


def _announced_s(server: ServerView, blocks: int, request: RouteRequest) -> float:
    """What a request takes in so many of its blocks, and their passes, by what it announces."""
    steps, _ = request_weights(request)
    block_s = steps * decode_block_s(server) + prefill_block_s(server, request.prompt_tokens)
    return (steps + 1) * server.decode_fixed_ms / 1e3 + blocks * block_s
