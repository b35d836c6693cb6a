"""Our own placement: many seeds, the best of them by what clients would see, then improved."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from swarm.errors import SwarmError
from swarm.routing.chains import burst_response_s, mean_response_s
from swarm.routing.inventory import Inventory, Tables, Workload, tables
from swarm.routing.layout import Layout
from swarm.routing.network import Floats, Indices
from swarm.routing.placements.chains import capacities, place_chains
from swarm.routing.placements.conservative import (
    conservative_sizes,
    most_sessions,
    place_conservatively,
)
from swarm.routing.placements.large import LARGE, place_in_large_pool
from swarm.routing.placements.petals import weakest_start
from swarm.routing.planned import planned_chains
from swarm.spans import PeerId, Span

MAX_CLIENTS = 4
"""By whose chains a placement is judged."""
_EQUAL = 0.005
_BURSTS = (1, 2, 4, 8, 16)
"""How many times the usual requests a placement should stand well, where it costs nothing."""


class BestPlacement:
    """Placements for every capacity `c`, each judged by the mean time of a request.

    For each `c` three candidates: CG-BP with `R = c`; GBP-CR; and the same chains cut by dynamic
    programming instead of greedily (`cheapest_members`), again and again from the machines that are
    left. Machines that are in no chain go where the model is weakest. The judge: chains with room
    (GCA), and the mean response of the queue before them if the rate is known, else the mean time
    of the workload's sessions, packed on the fastest chains. With more than `LARGE` machines no
    chains are planned (`place_in_large_pool`).
    """

    def place(self, inventory: Inventory, workload: Workload) -> Layout:
        """Raises MemoryShortError when the blocks do not fit beside the cache of one session."""
        figures = tables(inventory, workload)
        inventory.check_memory(workload, 1)
        if len(inventory.machines) > LARGE:
            return place_in_large_pool(inventory, figures, workload)
        judged = [
            (response_s(inventory, layout, workload), layout)
            for layout in self._candidates(inventory, figures, workload)
        ]
        if not judged:
            return place_conservatively(inventory, figures, 1)
        least = min(response for response, _ in judged)
        equals = [one for one in judged if one[0] <= least * (1 + _EQUAL)]
        response, layout = min(equals, key=lambda one: _bursts_s(inventory, one[1], workload))
        return replace(layout, notes={**layout.notes, "response_s": response})

    def _candidates(
        self, inventory: Inventory, figures: Tables, workload: Workload
    ) -> Iterator[Layout]:
        most = max(1, most_sessions(inventory, figures))
        if workload.rate_per_s <= 0:
            most = min(most, workload.at_once)
        for capacity in capacities(most):
            try:
                yield place_conservatively(inventory, figures, capacity)
            except SwarmError:
                continue
            greedy = place_chains(inventory, figures, workload, capacity)
            optimal = place_optimal_chains(inventory, figures, workload, capacity)
            for spans in (greedy, optimal):
                layout = _completed(inventory, figures, capacity, spans)
                if not layout.missing():
                    yield layout


def response_s(inventory: Inventory, layout: Layout, workload: Workload) -> float:
    """Mean time of a request over the layout's chains, as (a few of) its clients see them; infinite
    when they cannot carry the load."""
    clients = _some_clients(inventory)
    return sum(_response_s(inventory, layout, workload, one) for one in clients) / len(clients)


def _some_clients(inventory: Inventory) -> tuple[PeerId, ...]:
    return inventory.clients[:: -(-len(inventory.clients) // MAX_CLIENTS)]


def _bursts_s(inventory: Inventory, layout: Layout, workload: Workload) -> float:
    """Mean response, summed over bursts of several times the requests that are usual."""
    total = 0.0
    for client in _some_clients(inventory):
        chains = _slots(inventory, layout, workload, client)
        usual = workload.at_once
        if workload.rate_per_s > 0:
            # No more than there is room for: by a rate beyond that the line grows without end.
            room = sum(capacity for _, capacity in chains)
            usual = max(1, min(room, round(workload.rate_per_s * min(chains)[0])))
        total += sum(burst_response_s(chains, times * usual) for times in _BURSTS)
    return total


def _slots(
    inventory: Inventory, layout: Layout, workload: Workload, client: PeerId
) -> list[tuple[float, int]]:
    planned = planned_chains(inventory, layout, workload, client)
    return [(one.service_s + workload.held_s, one.capacity) for one in planned]


def _response_s(inventory: Inventory, layout: Layout, workload: Workload, client: PeerId) -> float:
    chains = _slots(inventory, layout, workload, client)
    if workload.rate_per_s > 0:
        return mean_response_s(chains, workload.rate_per_s)
    left, total = workload.at_once, 0.0
    for service_s, capacity in sorted(chains):
        taken = min(left, capacity)
        total += taken * service_s
        left -= taken
    return total / workload.at_once if left == 0 else float("inf")


def place_optimal_chains(
    inventory: Inventory, figures: Tables, workload: Workload, capacity: int
) -> dict[PeerId, Span]:
    """Disjoint chains of `capacity` requests, each the cheapest over the machines left."""
    count = conservative_sizes(inventory, figures, capacity).blocks
    hop_s = figures.request_hop_s(workload.output_tokens).mean(axis=0)
    block_s = figures.request_block_s(workload.output_tokens)
    num_blocks = inventory.model.num_blocks
    free = np.flatnonzero(count > 0)
    spans: dict[PeerId, Span] = {}
    while int(count[free].sum()) >= num_blocks:
        members = cheapest_members(num_blocks, hop_s[free], block_s[free], count[free])
        reached = 0
        for member in members:
            number = int(free[member])
            start = min(reached, num_blocks - int(count[number]))
            spans[inventory.machines[number].peer] = Span(start, start + int(count[number]))
            reached = start + int(count[number])
        free = np.delete(free, members)
    return spans


def cheapest_members(
    num_blocks: int, hop_s: Floats, block_s: Floats, most_blocks: Indices
) -> list[int]:
    """The machines of the cheapest chain over all blocks, the fastest of them first; none if they
    do not hold the blocks.

    In a relay chain a chain's cost is `sum(hop + block * used)` with `sum(used) = num_blocks` and
    `used <= most`, whatever the order: a knapsack, solved by a dynamic program over machines in
    the order of their time per block (then only the last one chosen is used in part), O(n L).
    """
    order = np.argsort(block_s, kind="stable").tolist()
    cost = np.full(num_blocks, np.inf)
    """Of having covered so many blocks with machines that are used in full."""
    cost[0] = 0.0
    taken = np.zeros((len(order), num_blocks), dtype=np.bool_)
    best, closing = np.inf, (0, 0)
    for position, number in enumerate(order):
        most = min(int(most_blocks[number]), num_blocks)
        if most < 1:
            continue
        first = num_blocks - most
        lacking = num_blocks - np.arange(first, num_blocks)
        closed = cost[first:] + hop_s[number] + block_s[number] * lacking
        if closed.min() < best:
            best, closing = float(closed.min()), (position, first + int(closed.argmin()))
        full = np.full(num_blocks, np.inf)
        full[most:] = cost[:first] + hop_s[number] + block_s[number] * most
        taken[position] = full < cost
        cost = np.minimum(cost, full)
    if not np.isfinite(best):
        return []
    position, covered = closing
    members = [order[position]]
    for earlier in range(position - 1, -1, -1):
        if covered > 0 and taken[earlier, covered]:
            members.append(order[earlier])
            covered -= int(most_blocks[order[earlier]])
    return members[::-1]


def _completed(
    inventory: Inventory, figures: Tables, capacity: int, spans: dict[PeerId, Span]
) -> Layout:
    """The machines without a chain go where the fewest sessions fit, the fastest first."""
    num_blocks = inventory.model.num_blocks
    sizes = conservative_sizes(inventory, figures, capacity)
    rooms = np.zeros(num_blocks)
    by_peer = {machine.peer: number for number, machine in enumerate(inventory.machines)}
    for peer, span in spans.items():
        rooms[span.start : span.end] += sizes.sessions[by_peer[peer]]
    completed = dict(spans)
    for number in np.argsort(sizes.block_s, kind="stable").tolist():
        peer, count = inventory.machines[number].peer, int(sizes.blocks[number])
        if peer in spans or count < 1:
            continue
        start = weakest_start(rooms.tolist(), count)
        completed[peer] = Span(start, start + count)
        rooms[start : start + count] += sizes.sessions[number]
    return Layout(num_blocks, completed, notes={"capacity": float(capacity)})
