"""GBP-CR: disjoint chains of cache-reserving machines (Sun, He, Hou, arXiv 2604.14993)."""

from dataclasses import replace

import numpy as np

from swarm.errors import MemoryShortError
from swarm.routing.chains import mean_response_s
from swarm.routing.inventory import Inventory, Tables, Workload, tables
from swarm.routing.layout import Layout
from swarm.routing.placements.conservative import conservative_sizes, most_sessions
from swarm.routing.planned import planned_chains
from swarm.spans import PeerId, Span

LOAD = 0.7
"""`rho`: chains are added until the requests are this share of what they serve."""

_MIN_S = 1e-9


def place_chains(
    inventory: Inventory, figures: Tables, workload: Workload, capacity: int
) -> dict[PeerId, Span]:
    """GBP-CR for chains of `capacity` (`c`) requests each: `m_j(c) = min(floor(M_j / (s_m + s_c
    c)), L)`, machines by their time per block, one chain after another until the rate suffices.

    The last machine of a chain begins earlier if its blocks reach beyond the model.
    """
    num_blocks = inventory.model.num_blocks
    count = conservative_sizes(inventory, figures, capacity).blocks
    hop_s = figures.request_hop_s(workload.output_tokens).mean(axis=0)
    time_s = hop_s + figures.request_block_s(workload.output_tokens) * count
    order = sorted(
        (number for number in range(len(count)) if count[number] > 0),
        key=lambda number: (time_s[number] / count[number], inventory.machines[number].peer),
    )
    enough = workload.rate_per_s / (LOAD * capacity) if workload.rate_per_s > 0 else np.inf
    spans: dict[PeerId, Span] = {}
    reached, chain_s, rate = 0, 0.0, 0.0
    for number in order:
        if reached == 0 and rate >= enough:
            break
        start = min(reached, num_blocks - int(count[number]))
        spans[inventory.machines[number].peer] = Span(start, start + int(count[number]))
        reached = start + int(count[number])
        chain_s += float(time_s[number])
        if reached >= num_blocks:
            rate += 1 / max(chain_s, _MIN_S)
            reached, chain_s = 0, 0.0
    return spans


class ChainsPlacement:
    """GBP-CR, chains with room by GCA, and the `c` with the least bound of the mean response.

    Without a rate (`Workload.rate_per_s`), `c` is the workload's sessions, and all machines are
    used.
    """

    def place(self, inventory: Inventory, workload: Workload) -> Layout:
        """Raises MemoryShortError when the blocks do not fit beside the cache of one session."""
        figures = tables(inventory, workload)
        most = most_sessions(inventory, figures)
        inventory.check_memory(workload, 1)
        if workload.rate_per_s <= 0:
            candidates = [max(1, min(most, workload.at_once))]
        else:
            candidates = capacities(max(1, most))
        best: Layout | None = None
        for capacity in candidates:
            spans = place_chains(inventory, figures, workload, capacity)
            layout = Layout(inventory.model.num_blocks, spans)
            if layout.missing():
                continue
            chains = planned_chains(inventory, layout, workload)
            bound = 0.0
            if workload.rate_per_s > 0:
                bound = mean_response_s(
                    [(chain.service_s + workload.held_s, chain.capacity) for chain in chains],
                    workload.rate_per_s,
                )
            notes = {"capacity": float(capacity), "response_bound_s": bound}
            layout = replace(layout, chains=tuple(chains), notes=notes)
            if best is None or bound < best.notes["response_bound_s"]:
                best = layout
        if best is None:
            raise MemoryShortError(
                f"GBP-CR completes no chain over the {inventory.model.num_blocks} blocks of "
                f"{inventory.model.name}; add machines"
            )
        return best


def capacities(most: int) -> list[int]:
    """The `c` to try: 1, 2, 3 ... in steps of about a tenth, up to `most`."""
    values: list[int] = []
    value = 1
    while value < most:
        values.append(value)
        value = max(value + 1, round(value * 1.1))
    return [*values, most]
