"""Placement in pools too large to plan chains for: few hops, and many ways to make them."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from swarm.errors import SwarmError
from swarm.routing.fitting import fitting
from swarm.routing.inventory import Inventory, Tables, Workload
from swarm.routing.layout import Layout, view_of
from swarm.routing.placements.conservative import (
    ConservativeSizes,
    conservative_sizes,
    most_sessions,
    place_conservatively,
)
from swarm.routing.planned import route_costs
from swarm.routing.router import RouteRequest
from swarm.routing.routers.layers import LayerRouter
from swarm.spans import Span

LARGE = 48
"""Machines; with more of them chains with room are no longer planned one by one."""
_CLIENTS = 24
"""By whose routes a layout is judged."""
_ROOM = 16.0
"""How many times the sessions that are expected the caches must hold: all want the same machines,
those with short ways to each other."""
_GROWS = 1.6
"""From one capacity that is tried to the next."""


def place_in_large_pool(inventory: Inventory, figures: Tables, workload: Workload) -> Layout:
    """The layout on which requests are quickest among those with room for the load.

    For a dozen capacities `c` (sessions that a machine has room for in all its blocks) two layouts:
    CG-BP's, and `aligned`. The judge: the mean time of a request over the best routes of some
    clients in an idle swarm, and room in the least covered block for many times the sessions that
    there will then be. Raises MemoryShortError.
    """
    judged: list[tuple[float, float, int, Layout]] = []
    for capacity in _capacities(max(1, most_sessions(inventory, figures))):
        for layout in _layouts(inventory, figures, capacity):
            request_s = _request_s(inventory, layout, workload)
            sessions = max(workload.at_once, workload.rate_per_s * (request_s + workload.held_s))
            room = _room(inventory, figures, layout)
            lacking = max(0.0, _ROOM * sessions - room) / (_ROOM * sessions)
            if math.isfinite(request_s):
                judged.append((lacking, request_s, len(judged), layout))
    if not judged:
        return place_conservatively(inventory, figures, 1)
    lacking, request_s, _, layout = min(judged, key=lambda one: one[:3])
    return replace(layout, notes={**layout.notes, "response_s": request_s})


def _capacities(most: int) -> list[int]:
    values, value = [], 1
    while value < most:
        values.append(value)
        value = max(value + 1, round(value * _GROWS))
    return [*values, most]


def _layouts(inventory: Inventory, figures: Tables, capacity: int) -> Iterator[Layout]:
    try:
        yield place_conservatively(inventory, figures, capacity)
    except SwarmError:
        return
    layout = aligned(inventory, conservative_sizes(inventory, figures, capacity))
    if not layout.missing():
        yield replace(layout, notes={"capacity": float(capacity)})


def aligned(inventory: Inventory, sizes: ConservativeSizes) -> Layout:
    """Every machine at one of few places: with `m` of `L` blocks, `ceil(L / m)` places at equal
    distances from the first block to the last one.

    So all that begin at the first block end where others have begun, and any of the ones can be
    followed by any of the others. The fastest machines first, each where the blocks are computed
    slowest so far (tokens/s of all hosts together).
    """
    num_blocks = inventory.model.num_blocks
    rates = np.zeros(num_blocks)
    spans = {}
    for number in np.argsort(sizes.block_s, kind="stable").tolist():
        count = int(sizes.blocks[number])
        if count < 1:
            continue
        places = -(-num_blocks // count)
        starts = {
            round(place * (num_blocks - count) / max(1, places - 1)) for place in range(places)
        }
        start = min(
            sorted(starts), key=lambda first: np.sort(rates[first : first + count]).tolist()
        )
        spans[inventory.machines[number].peer] = Span(start, start + count)
        rates[start : start + count] += 1.0 / float(sizes.block_s[number])
    return Layout(num_blocks, spans)


def _request_s(inventory: Inventory, layout: Layout, workload: Workload) -> float:
    """Mean over some clients; infinite where a session would take too many hops."""
    view = view_of(inventory, layout, workload.prompt_tokens)
    router = LayerRouter(route_costs(inventory))
    clients = inventory.clients
    if len(clients) > _CLIENTS:
        clients = tuple(random.Random(_CLIENTS).sample(clients, _CLIENTS))
    total_s = 0.0
    for client in clients:
        request = RouteRequest(client, workload.prompt_tokens, workload.output_tokens)
        try:
            route = router.route(view, inventory.network, request)
        except SwarmError:
            return math.inf
        total_s += route.request_s(workload.output_tokens)
    return total_s / len(clients)


def _room(inventory: Inventory, figures: Tables, layout: Layout) -> float:
    """Sessions that the caches around the least covered block hold."""
    rooms = np.zeros(layout.num_blocks)
    for number, machine in enumerate(inventory.machines):
        span = layout.spans.get(machine.peer)
        if span is not None:
            weights = figures.block_bytes * len(span)
            each = max(figures.cache_bytes * len(span), 1e-9)
            rooms[span.start : span.end] += fitting(float(figures.memory[number]), weights, each)
    return float(rooms.min())
