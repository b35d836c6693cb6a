"""Our own placement: the anchors' as seeds, the best of them by what clients would see."""

from collections.abc import Sequence
from dataclasses import replace

from swarm.errors import SwarmError
from swarm.routing.chains import mean_response_s
from swarm.routing.inventory import Inventory, Workload
from swarm.routing.layout import Layout, Placement
from swarm.routing.placements.chains import ChainsPlacement
from swarm.routing.placements.conservative import ConservativePlacement
from swarm.routing.planned import planned_chains


class BestPlacement:
    """Of several placements the one whose chains serve the workload best."""

    def place(self, inventory: Inventory, workload: Workload) -> Layout:
        """Raises MemoryShortError."""
        seeds: Sequence[Placement] = (ConservativePlacement(), ChainsPlacement())
        layouts: list[Layout] = []
        failures: list[SwarmError] = []
        for seed in seeds:
            try:
                layouts.append(seed.place(inventory, workload))
            except SwarmError as error:
                failures.append(error)
        if not layouts:
            raise failures[0]
        scored = [
            replace(one, notes={**one.notes, "response_s": response_s(inventory, one, workload)})
            for one in layouts
        ]
        return min(scored, key=lambda one: one.notes["response_s"])


def response_s(inventory: Inventory, layout: Layout, workload: Workload) -> float:
    """Mean time of a request over the layout's chains, with waiting if the rate is known; else with
    all sessions there at once, packed on the fastest chains."""
    chains = [(one.service_s, one.capacity) for one in planned_chains(inventory, layout, workload)]
    if workload.rate_per_s > 0:
        return mean_response_s(chains, workload.rate_per_s)
    left, total = workload.sessions, 0.0
    for service_s, capacity in sorted(chains):
        taken = min(left, capacity)
        total += taken * service_s
        left -= taken
    return total / workload.sessions if left == 0 else float("inf")
