"""From a chain of numbered servers to the route that a client opens."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from swarm.errors import SwarmError
from swarm.routing.layer_graph import Chain
from swarm.routing.network import Network
from swarm.routing.router import Route, RouteCosts, RouteRequest, cost_of
from swarm.routing.view import CacheUnit, ServerView, SwarmView
from swarm.sessions.messages import MAX_HOPS, Hop


def route_over(
    chain: Chain,
    servers: Sequence[ServerView],
    network: Network,
    request: RouteRequest,
    costs: RouteCosts,
    wait_s: float = 0.0,
) -> Route:
    """The route over `chain`, with its predicted times.

    Raises SwarmError for more hops than a session takes.
    """
    if len(chain.parts) > MAX_HOPS:
        raise SwarmError(
            f"the chain over {chain.parts[-1].end} blocks has {len(chain.parts)} hops, and a"
            f" session takes at most {MAX_HOPS}; servers with longer spans are needed"
        )
    hops = tuple(Hop(servers[part.server].peer, part.start, part.end) for part in chain.parts)
    used = [servers[part.server] for part in chain.parts]
    cost = cost_of(hops, used, network, request, costs)
    return Route(hops, wait_s, cost.ttft_s, cost.tpot_s)


def cache_needs(view: SwarmView, request: RouteRequest) -> NDArray[np.int64]:
    """`[servers, num_blocks + 1]`: what a session reserves at each for each number of blocks that
    it uses."""
    used = np.arange(view.num_blocks + 1, dtype=np.int64)
    by_block = view.cache_unit is CacheUnit.BLOCK
    needed = request.cache_tokens * (used if by_block else np.minimum(used, 1))
    return np.broadcast_to(needed, (len(view.servers), len(used)))
