"""Petals' routing for inference: Dijkstra over span ends, with its constants."""

from dataclasses import replace

import numpy as np

from swarm.routing.hop_graph import HopCosts, cheapest_hops
from swarm.routing.network import Network
from swarm.routing.no_route import no_route
from swarm.routing.router import Forgetful, Route, RouteCosts, RouteRequest
from swarm.routing.routes import route_over
from swarm.routing.view import SwarmView

HOP_S = 0.018
NO_CACHE_S = 10.0
MAX_DELAY_S = 5.0
UNMEASURED_BLOCKS_PER_S = 300.0


class PetalsRouter(Forgetful):
    """`min_latency` of Petals' `sequence_manager`.

    It scores a ring of one-way delays (half a round trip and 18 ms for each hop, at most 5 s), the
    measured time of each block (1/300 s where there is none), and 10 s for a server that seems to
    lack cache for the session over all its blocks. Waits and load do not count, and a server is
    used to the end of its span. Other than Petals' own code, it never loses the round trips to
    first hops.
    """

    def __init__(self, costs: RouteCosts) -> None:
        """`costs`: by which the chosen chain's times are predicted."""
        self._costs = costs

    def route(self, view: SwarmView, network: Network, request: RouteRequest) -> Route:
        """Raises MissingBlocksError."""
        servers = view.online(request.avoid)
        links = network.links([server.peer for server in servers])
        everyone = np.arange(len(servers))
        delay = np.minimum(links.from_peer_s(request.client), MAX_DELAY_S)
        lacking = np.array(
            [
                server.cache_tokens_free
                < view.cache_needed(server, request.cache_tokens, len(server.span))
                for server in servers
            ],
            dtype=np.float64,
        )
        costs = HopCosts(
            num_blocks=view.num_blocks,
            start=np.array([server.span.start for server in servers], dtype=np.intp),
            end=np.array([server.span.end for server in servers], dtype=np.intp),
            usable=np.ones(len(servers), dtype=np.bool_),
            enter_s=delay,
            leave_s=delay,
            fixed_s=HOP_S + NO_CACHE_S * lacking,
            block_s=np.array(
                [
                    server.decode_ms_per_block / 1e3 or 1 / UNMEASURED_BLOCKS_PER_S
                    for server in servers
                ]
            ),
            between_s=np.minimum(links.between_s(everyone, everyone), MAX_DELAY_S),
            wait_s=np.zeros((len(servers), view.num_blocks + 1)),
        )
        kinds = {None if self._costs.mix_numerics else one.numerics for one in servers}
        found = [
            cheapest_hops(
                replace(
                    costs,
                    usable=np.array([kind in (None, one.numerics) for one in servers], np.bool_),
                )
            )
            for kind in sorted(kinds, key=str)
        ]
        best = min((one for one in found if one), key=lambda one: one.chain.cost_s, default=None)
        if best is None:
            raise no_route(view, request)
        return route_over(best.chain, servers, network, request, self._costs)
