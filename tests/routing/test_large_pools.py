"""Placement in pools for which no chains are planned: few hops, room, and what cannot be."""

import pytest
from inventories import inventory, machine, model

from swarm.errors import MemoryShortError
from swarm.routing.inventory import Inventory, Workload, tables
from swarm.routing.placements.best import BestPlacement
from swarm.routing.placements.conservative import ConservativePlacement, conservative_sizes
from swarm.routing.placements.large import LARGE, aligned
from swarm.routing.planned import best_routes


def many(count: int, memory: float, cache_bytes: float = 0.001) -> Inventory:
    speeds = (0.001, 0.002, 0.004)
    machines = [machine(f"m{n:03}", memory, speeds[n % len(speeds)]) for n in range(count)]
    return inventory(model(20, 1.0, cache_bytes), *machines, rtt_s=0.05, clients=3)


def test_all_that_begin_late_end_together() -> None:
    given = many(12, 11.0)
    sizes = conservative_sizes(given, tables(given, Workload(10, 10, 1)), 1)
    layout = aligned(given, sizes)
    assert {str(span) for span in layout.spans.values()} == {"0:10", "10:20"}
    assert min(layout.hosts()) == max(layout.hosts()) == 6


def test_few_hops_where_room_for_all_at_once_would_cost_more_of_them() -> None:
    given = many(2 * LARGE, 12.0)
    workload = Workload(50, 50, 5)
    best = BestPlacement().place(given, workload)
    assert not best.missing()
    hops = {len(route.hops) for route in best_routes(given, best, workload)}
    assert hops == {2}
    careful = ConservativePlacement().place(given, workload)
    assert min(len(route.hops) for route in best_routes(given, careful, workload)) > 2


def test_a_pool_without_room_for_the_load_gets_the_roomiest_layout() -> None:
    given = many(2 * LARGE, 12.0)
    best = BestPlacement().place(given, Workload(50, 50, 10_000))
    assert not best.missing()
    few = BestPlacement().place(given, Workload(50, 50, 1))
    assert sum(map(len, best.spans.values())) < sum(map(len, few.spans.values()))


def test_a_large_pool_that_is_too_small_is_told_so() -> None:
    with pytest.raises(MemoryShortError, match="GB more"):
        BestPlacement().place(many(2 * LARGE, 0.5), Workload(10, 10, 1))
