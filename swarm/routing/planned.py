"""What a layout delivers: chains with room, times, throughput, coverage and redundancy."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from swarm.routing.chains import allocate_greedily
from swarm.routing.hop_graph import HopCosts
from swarm.routing.inventory import Inventory, Workload
from swarm.routing.layer_graph import cheapest_chain
from swarm.routing.layout import Layout, PlannedChain, view_of
from swarm.routing.no_route import no_route
from swarm.routing.router import Route, RouteCosts, RouteRequest
from swarm.routing.routes import cache_needs, route_over
from swarm.routing.server_index import ServerIndex
from swarm.sessions.messages import MAX_HOPS
from swarm.spans import PeerId

_UNBOUNDED = 3
"""A status of `scipy.optimize.linprog`."""


def route_costs(inventory: Inventory) -> RouteCosts:
    """How clients of this inventory reckon."""
    return RouteCosts(inventory.mode, inventory.overhead, inventory.model.activation_bytes)


def best_routes(inventory: Inventory, layout: Layout, workload: Workload) -> list[Route]:
    """The best chain of each client in an idle swarm. Raises MissingBlocksError."""
    layout.check_covers()
    costs = route_costs(inventory)
    index = ServerIndex(costs)
    view = view_of(inventory, layout, workload.prompt_tokens)
    routes: list[Route] = []
    for client in inventory.clients:
        request = RouteRequest(client, workload.prompt_tokens, workload.output_tokens)
        found = index.candidates(view, inventory.network, request, cache_penalties=False)
        chain = cheapest_chain(found)
        if chain is None:
            raise no_route(view, request)
        routes.append(route_over(chain, view.servers, inventory.network, request, costs))
    return routes


def planned_chains(
    inventory: Inventory, layout: Layout, workload: Workload, client: PeerId | None = None
) -> list[PlannedChain]:
    """GCA over a layout, as one client (the first) sees it: the fastest chains first."""
    costs = route_costs(inventory)
    view = view_of(inventory, layout, workload.prompt_tokens)
    request = RouteRequest(
        client or inventory.clients[0], workload.prompt_tokens, workload.output_tokens
    )
    found = ServerIndex(costs).candidates(view, inventory.network, request, cache_penalties=False)
    room = [server.cache_tokens_free for server in view.servers]
    planned: list[PlannedChain] = []
    for chain, capacity in allocate_greedily(HopCosts.of(found), room, cache_needs(view, request)):
        if len(chain.parts) > MAX_HOPS:
            # What caches are left makes chains that no session may take.
            continue
        route = route_over(chain, view.servers, inventory.network, request, costs)
        planned.append(PlannedChain(route.hops, capacity, route.request_s(workload.output_tokens)))
    return planned


@dataclass(frozen=True)
class Expectation:
    """What users can expect of a layout."""

    least_hosts: int
    """How many machines hold the block that fewest hold; 0: the model is not covered."""
    ttft_s: float
    """Mean over the clients, by the best chains of an idle swarm; infinite if not covered."""
    tpot_s: float
    request_s: float
    tokens_per_s: float
    """Of all sessions together, one row a pass: what the machines can compute at most."""
    sessions: int
    """That the caches hold at once (in the chains of GCA)."""


def expect(inventory: Inventory, layout: Layout, workload: Workload) -> Expectation:
    """The figures that a planner shows."""
    least = min(layout.hosts())
    if least == 0:
        return Expectation(0, np.inf, np.inf, np.inf, 0.0, 0)
    routes = best_routes(inventory, layout, workload)
    count = len(routes)
    return Expectation(
        least_hosts=least,
        ttft_s=sum(route.ttft_s for route in routes) / count,
        tpot_s=sum(route.tpot_s for route in routes) / count,
        request_s=sum(route.request_s(workload.output_tokens) for route in routes) / count,
        tokens_per_s=tokens_per_s(inventory, layout),
        sessions=sum(chain.capacity for chain in planned_chains(inventory, layout, workload)),
    )


def tokens_per_s(inventory: Inventory, layout: Layout) -> float:
    """The largest flow of decoded tokens that the machines can compute, one row a pass.

    As in Helix (arXiv 2406.01566) the throughput of a placement is a maximal flow; with any part of
    a span usable it is the linear program: `sum_j rate[j, b] = T` for every block, and no machine
    busy more than all the time.
    """
    peers = list(layout.spans)
    pairs = [
        (number, block)
        for number, peer in enumerate(peers)
        for block in range(layout.spans[peer].start, layout.spans[peer].end)
    ]
    machine = np.array([number for number, _ in pairs], dtype=np.intp)
    block = np.array([at for _, at in pairs], dtype=np.intp)
    block_s = np.array(
        [
            inventory.machine(peer).speed.decode_s(len(layout.spans[peer]))
            / len(layout.spans[peer])
            for peer in peers
        ]
    )
    variables = len(pairs) + 1
    at = np.arange(len(pairs))
    blocks = layout.num_blocks
    equal = coo_matrix(
        (
            np.concatenate([np.ones(len(pairs)), -np.ones(blocks)]),
            (
                np.concatenate([block, np.arange(blocks)]),
                np.concatenate([at, np.full(blocks, variables - 1)]),
            ),
        ),
        shape=(blocks, variables),
    )
    busy = coo_matrix((block_s[machine], (machine, at)), shape=(len(peers), variables))
    objective = np.zeros(variables)
    objective[-1] = -1.0
    result = linprog(
        objective, A_ub=busy, b_ub=np.ones(len(peers)), A_eq=equal, b_eq=np.zeros(blocks)
    )
    if result.status == _UNBOUNDED:
        # Some chain takes no time at all.
        return np.inf
    return float(-result.fun) if result.status == 0 else 0.0
