"""Routers that know when servers' caches become free: WS-RR, and the exact one."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from swarm.routing.hop_graph import HopChain, HopCosts, HopLevels, cheapest_hops, waits
from swarm.routing.layer_graph import Chain
from swarm.routing.network import Floats, Network
from swarm.routing.no_route import no_route
from swarm.routing.router import Forgetful, Route, RouteCosts, RouteRequest
from swarm.routing.routes import cache_needs, route_over
from swarm.routing.server_index import Candidates, ServerIndex
from swarm.routing.view import SwarmView

Rounding = Callable[[float], float]
"""From the time at which a session could start to the time at which it does."""


def at_once(wait_s: float) -> float:
    """Servers wake those who wait in line."""
    return wait_s


def petals_retries(wait_s: float) -> float:
    """Petals' clients ask again 1, 2, 4 ... 32, 60, 60 ... s after each refusal."""
    if wait_s <= 0:
        return 0.0
    tries = math.ceil(math.log2(wait_s + 1))
    if tries <= 6:
        return float(2**tries - 1)
    return 63.0 + 60.0 * math.ceil((wait_s - 63.0) / 60.0)


class _WaitingRouter(Forgetful):
    """What both share: reading the snapshot, one group of numerics at a time."""

    def __init__(self, costs: RouteCosts, rounding: Rounding = at_once) -> None:
        self._costs = costs
        self._rounding = rounding
        self._index = ServerIndex(costs)

    def route(self, view: SwarmView, network: Network, request: RouteRequest) -> Route:
        """`wait_s` of the route is the longest wait of its hops, rounded. MissingBlocksError."""
        found = self._index.candidates(view, network, request, cache_penalties=False)
        waiting = _waits(view, request)
        best: tuple[float, float, Chain] | None = None
        for group in np.unique(found.group[found.usable]).tolist():
            usable = found.usable & (found.group == group)
            answer = self._choose(replace(found, usable=usable), waiting)
            if answer is None:
                continue
            wait_s = self._rounding(answer.wait_s)
            total_s = wait_s + answer.chain.cost_s
            if best is None or total_s < best[0]:
                best = total_s, wait_s, answer.chain
        if best is None:
            raise no_route(view, request)
        _, wait_s, chain = best
        return route_over(chain, view.servers, network, request, self._costs, wait_s)

    def _choose(self, found: Candidates, waiting: Floats) -> HopChain | None:
        raise NotImplementedError


class WaitingTimeRouter(_WaitingRouter):
    """WS-RR (Sun et al., arXiv 2512.21884, section III-D): the least sum of waits and costs.

    The sum is an upper bound; a session really starts when the slowest hop has room.
    """

    def _choose(self, found: Candidates, waiting: Floats) -> HopChain | None:
        return cheapest_hops(HopCosts.of(found, waiting))


class ThresholdRouter(_WaitingRouter):
    """The least `max(waits) + sum(costs)`, exactly: for each wait that occurs, from the least on,
    the cheapest chain whose hops wait no longer, until the wait alone is worse than the best."""

    def _choose(self, found: Candidates, waiting: Floats) -> HopChain | None:
        costs = HopCosts.of(found, waiting)
        levels = HopLevels.of(costs)
        occurring = waiting[found.usable]
        best: HopChain | None = None
        best_s = math.inf
        for limit in np.unique(occurring[np.isfinite(occurring)]).tolist():
            if self._rounding(limit) >= best_s:
                break
            chain = cheapest_hops(costs, add_waits=False, most_wait_s=limit, levels=levels)
            if chain is not None:
                total_s = self._rounding(chain.wait_s) + chain.chain.cost_s
                if total_s < best_s:
                    best, best_s = chain, total_s
        return best


def _waits(view: SwarmView, request: RouteRequest) -> Floats:
    return waits(
        [server.cache_tokens_free for server in view.servers],
        [[(one.after_s, one.tokens) for one in server.releases] for server in view.servers],
        cache_needs(view, request),
    )
