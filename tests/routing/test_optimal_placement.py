"""The programs for the optimum: against each other, against trying, and against every placement."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from inventories import inventory, machine, model, pools

from swarm.errors import MemoryShortError, UsageError
from swarm.routing.flow_program import FlowProblem, solve
from swarm.routing.inventory import Inventory, Workload, tables
from swarm.routing.placements.best import BestPlacement
from swarm.routing.placements.conservative import ConservativePlacement, place_conservatively
from swarm.routing.placements.optimum import OptimalPlacement, layout_cost
from swarm.routing.policies import placement_named
from swarm.routing.product_program import solve_products


def every_span(blocks: int) -> list[tuple[int, int]]:
    return [(start, size) for size in range(1, blocks + 1) for start in range(blocks - size + 1)]


def toy(seed: int) -> FlowProblem:
    rng = random.Random(seed)
    machines, blocks, requests = rng.choice([2, 3]), rng.randint(2, 5), rng.choice([1, 2])
    return FlowProblem(
        blocks,
        np.array([rng.uniform(0.5, blocks + 1.5) * 1e9 for _ in range(machines)]),
        1e9,
        rng.choice([0.0, 0.05e9, 0.2e9]),
        np.array([[rng.choice([0.01, 0.1, 0.3]) for _ in range(machines)]]),
        np.array([rng.choice([0.001, 0.01, 0.05]) for _ in range(machines)]),
        [requests],
    )


@pytest.mark.parametrize("seed", range(12))
def test_both_programs_agree_on_toys(seed: int) -> None:
    problem = toy(seed)
    options = [every_span(problem.num_blocks)] * len(problem.memory)
    ours = solve(problem, options, whole_requests=True)
    theirs = solve_products(problem, time_limit_s=60)
    assert ours.objective_s == pytest.approx(theirs.objective_s, rel=1e-4)
    if math.isfinite(ours.objective_s):
        assert ours.optimal
        assert theirs.optimal
        split = solve(problem, options)
        assert split.objective_s <= ours.objective_s + 1e-9


def brute_force_s(problem: FlowProblem) -> float:
    """All placements of one request's machines, all chains (no sharing: one request)."""
    best = math.inf
    machines = range(len(problem.memory))
    for size in range(1, len(problem.memory) + 1):
        for chain in itertools.permutations(machines, size):
            for cuts in itertools.combinations(range(1, problem.num_blocks), size - 1):
                used = np.diff([0, *cuts, problem.num_blocks])
                need = used * (problem.block_bytes + problem.cache_bytes)
                if all(need <= problem.memory[list(chain)] * (1 + 1e-12)):
                    hops = problem.hop_s[0, list(chain)] + problem.block_s[list(chain)] * used
                    best = min(best, float(hops.sum()))
    return best


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_the_program_finds_what_trying_finds(seed: int) -> None:
    problem = replace(toy(seed), requests=[1])
    options = [every_span(problem.num_blocks)] * len(problem.memory)
    expected = brute_force_s(problem)
    found = solve(problem, options, whole_requests=True)
    assert found.objective_s == pytest.approx(expected, rel=1e-4)


def test_time_that_runs_out_leaves_an_incumbent_and_a_bound() -> None:
    machines = [machine(f"m{n}", 9.0 + n % 5, 0.001 * (1 + n % 7)) for n in range(14)]
    rtt = {one.peer: 0.01 + 0.013 * (n % 6) for n, one in enumerate(machines)}
    given_inventory = inventory(model(40, 1.0, 0.01), *machines, rtt_s=rtt, clients=3)
    workload = Workload(1, 2, 6)
    hasty = OptimalPlacement(ConservativePlacement(), time_limit_s=0.01)
    layout = hasty.place(given_inventory, workload)
    assert not layout.missing()
    assert layout.notes["gap"] >= 0
    assert layout.notes["bound_s"] <= layout.notes["objective_s"]
    with pytest.raises(UsageError, match="too many"):
        placement_named("optimum-products", random.Random(0)).place(given_inventory, workload)


@settings(max_examples=25, deadline=None)
@given(pools(max_machines=5, max_blocks=8))
def test_the_optimum_is_no_worse_than_any_other(pool: tuple[Inventory, Workload]) -> None:
    given_inventory, workload = pool
    try:
        best = OptimalPlacement(BestPlacement()).place(given_inventory, workload)
    except MemoryShortError:
        return
    assert best.notes["bound_s"] <= best.notes["objective_s"] + 1e-9
    sessions = int(best.notes["sessions"])
    greedy = place_conservatively(given_inventory, tables(given_inventory, workload), sessions)
    if greedy.notes["sessions"] == sessions:
        cost = layout_cost(given_inventory, greedy, replace(workload, sessions=sessions))
        assert best.notes["objective_s"] <= cost.objective_s + 1e-9
