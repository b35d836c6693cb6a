"""Routers that cut the swarm into fixed chains and hand requests out to them."""

from dataclasses import replace

import numpy as np

from swarm.routing.chains import allocate_greedily, disjoint_chains
from swarm.routing.hop_graph import HopCosts
from swarm.routing.layer_graph import Chain
from swarm.routing.network import Network
from swarm.routing.no_route import no_route
from swarm.routing.router import Route, RouteCosts, RouteRequest, Trusting
from swarm.routing.routes import cache_needs, route_over
from swarm.routing.server_index import ServerIndex
from swarm.routing.view import ServerView, SwarmView
from swarm.sessions.messages import MAX_HOPS
from swarm.spans import PeerId, SessionId

_Signature = tuple[object, ...]


class _PipelineRouter(Trusting):
    """Chains are computed when the placement changes, not for each request."""

    def __init__(self, costs: RouteCosts) -> None:
        self._costs = costs
        self._index = ServerIndex(costs)
        self._signature: _Signature | None = None
        self._view: SwarmView | None = None
        """Of which the signature is."""
        self._chains: list[tuple[Chain, int]] = []
        """With their capacities."""
        self._running: dict[SessionId, tuple[PeerId, ...]] = {}

    def route(self, view: SwarmView, network: Network, request: RouteRequest) -> Route | None:
        """The next chain; None: all are full. Raises MissingBlocksError."""
        signature = self._signature_of(view, request)
        if signature != self._signature:
            found = self._index.candidates(view, network, request, cache_penalties=False)
            chains = [
                chain
                for group in np.unique(found.group[found.usable])
                for chain in self._cut(
                    view,
                    request,
                    HopCosts.of(replace(found, usable=found.usable & (found.group == group))),
                )
            ]
            chains.sort(key=lambda one: one[0].cost_s)
            # Those that no session may take only stand in the way of the others.
            short = [one for one in chains if len(one[0].parts) <= MAX_HOPS]
            self._chains = short or chains
            self._signature = signature
        self._view = view
        if not self._chains:
            raise no_route(view, request)
        chain = self._next(view)
        if chain is None:
            return None
        return route_over(chain, view.servers, network, request, self._costs)

    def _signature_of(self, view: SwarmView, request: RouteRequest) -> _Signature:
        """What chains depend on; of servers it is read once for each view."""
        known = self._signature
        servers = known[-1] if known is not None and view is self._view else _servers(view)
        return request.cache_tokens, request.avoid, servers

    def _cut(
        self, view: SwarmView, request: RouteRequest, costs: HopCosts
    ) -> list[tuple[Chain, int]]:
        raise NotImplementedError

    def _next(self, view: SwarmView) -> Chain | None:
        raise NotImplementedError

    def opened(self, session: SessionId, route: Route) -> None:
        """It takes one slot of its chain."""
        self._running[session] = tuple(PeerId(hop.peer) for hop in route.hops)

    def closed(self, session: SessionId) -> None:
        """Its slot is free again."""
        self._running.pop(session, None)


class FastestFreeChainRouter(_PipelineRouter):
    """JFFC (Sun, He, Hou, arXiv 2604.14993): GCA's fastest chain with a free slot, else wait.

    Who calls keeps those who wait in one line, first come first served, and asks again for the
    first of them when a session has closed.
    """

    def _cut(
        self, view: SwarmView, request: RouteRequest, costs: HopCosts
    ) -> list[tuple[Chain, int]]:
        room = [server.cache_tokens_total for server in view.servers]
        return allocate_greedily(costs, room, cache_needs(view, request))

    def _next(self, view: SwarmView) -> Chain | None:
        running = list(self._running.values())
        for chain, capacity in self._chains:
            peers = tuple(view.servers[part.server].peer for part in chain.parts)
            if running.count(peers) < capacity:
                return chain
        return None


class RoundRobinRouter(_PipelineRouter):
    """Parallax' shipped default: fixed chains without a common server, one after the other."""

    def __init__(self, costs: RouteCosts) -> None:
        super().__init__(costs)
        self._turn = 0

    def _cut(
        self, view: SwarmView, request: RouteRequest, costs: HopCosts
    ) -> list[tuple[Chain, int]]:
        return [(chain, 1) for chain in disjoint_chains(costs)]

    def _next(self, view: SwarmView) -> Chain | None:
        chain, _ = self._chains[self._turn % len(self._chains)]
        self._turn += 1
        return chain


def _servers(view: SwarmView) -> tuple[object, ...]:
    def part(server: ServerView) -> tuple[object, ...]:
        return server.peer, server.span, server.state, server.cache_tokens_total

    return tuple(part(server) for server in view.servers)
