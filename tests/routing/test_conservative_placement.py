"""CG-BP: the paper's figures, its bound and its worst case."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from inventories import BLOOM, bloom_machine, inventory, machine, model, pools

from swarm.errors import MemoryShortError
from swarm.routing.inventory import Inventory, Workload, tables
from swarm.routing.layout import Layout
from swarm.routing.placements.conservative import (
    ConservativePlacement,
    choose_sessions,
    conservative_sizes,
    most_sessions,
)
from swarm.routing.placements.optimum import OptimalPlacement, layout_cost
from swarm.routing.planned import best_routes
from swarm.spans import PeerId, Span


def test_cg_bps_numbers_of_blooms_blocks() -> None:
    # lambda = 0.5 requests/s, 128 tokens: R such that an A100 holds 41 blocks and a MIG slice 3+
    machines = [
        bloom_machine(79.13),
        *[replace(bloom_machine(8.2, True), peer=PeerId(f"m{n}")) for n in range(7)],
    ]
    given_inventory = inventory(BLOOM, *machines)
    workload = Workload(20, 128, 70)
    sizes = conservative_sizes(given_inventory, tables(given_inventory, workload), 70)
    assert sizes.blocks.tolist() == [41, *[4] * 7]
    # s_c of the paper for 148 tokens, and nobody holds more than can carry all sessions
    assert tables(given_inventory, workload).cache_bytes == pytest.approx(0.008487e9, rel=1e-3)
    assert all(sizes.sessions >= 70)


def test_the_choice_of_r() -> None:
    assert choose_sessions(0.5, 60.0) == round(30 + math.sqrt(30))
    assert choose_sessions(0.001, 1.0) == 1


@given(pools(max_machines=6, max_sessions=1))
def test_the_closed_form_of_r_max_is_sufficient(pool: tuple[Inventory, Workload]) -> None:
    given_inventory, workload = pool
    figures = tables(given_inventory, workload)
    assume(figures.cache_bytes > 0)
    least = given_inventory.model.num_blocks + len(figures.memory)
    closed = (float(figures.memory.sum()) - figures.block_bytes * least) / (
        figures.cache_bytes * least
    )
    most = most_sessions(given_inventory, figures)
    assert most >= math.floor(closed)
    if most:

        def held(sessions: int) -> int:
            return int(conservative_sizes(given_inventory, figures, sessions).blocks.sum())

        assert held(most) >= given_inventory.model.num_blocks > held(most + 1)


def per_token_s(given_inventory: Inventory, layout: Layout, workload: Workload) -> float:
    """Of the decoded token, the mean over clients, by the best chain."""
    routes = best_routes(given_inventory, layout, workload)
    return sum(route.tpot_s for route in routes) / len(routes)


@given(pools(max_machines=7, max_blocks=12, clients=2))
def test_theorem_2_bounds_cg_bp(pool: tuple[Inventory, Workload]) -> None:
    given_inventory, workload = pool
    try:
        layout = ConservativePlacement().place(given_inventory, workload)
    except MemoryShortError:
        figures = tables(given_inventory, workload)
        blocks = conservative_sizes(given_inventory, figures, 1).blocks
        # It gives up only where not even one session's blocks fit.
        assert blocks.sum() < given_inventory.model.num_blocks
        return
    assert not layout.missing()
    sessions = int(layout.notes["sessions"])
    figures = tables(given_inventory, workload)
    sizes = conservative_sizes(given_inventory, figures, sessions)
    for one, count in zip(given_inventory.machines, sizes.blocks.tolist(), strict=True):
        assert len(layout.spans.get(one.peer, ())) == count  # type: ignore[arg-type]
    found = per_token_s(given_inventory, layout, workload)
    assert found <= layout.notes["bound_s"] + 1e-9
    # All sessions fit on the best chains (Lemma 3), so the linear program finds no better one.
    routed = layout_cost(given_inventory, layout, replace(workload, sessions=sessions))
    assert routed.objective_s == pytest.approx(found, rel=1e-6)


def test_cg_bps_worst_case() -> None:
    """L^2 machines with room for L + 1 blocks: CG-BP walks L hops, the optimum one."""
    blocks, hop_s, block_s = 3, 0.1, 0.001
    machines = [machine(f"m{n}", blocks + 1.0, block_s) for n in range(blocks**2)]
    # caches of L blocks take as much as one block
    given_inventory = inventory(model(blocks, 1.0, 1.0 / blocks), *machines, rtt_s=hop_s)
    workload = Workload(0, 1, blocks**2)
    layout = ConservativePlacement().place(given_inventory, workload)
    assert {len(span) for span in layout.spans.values()} == {1}
    greedy = layout_cost(given_inventory, layout, workload)
    assert greedy.objective_s == pytest.approx(blocks * (hop_s + block_s))
    whole = Layout(blocks, {one.peer: Span(0, blocks) for one in machines})
    best = layout_cost(given_inventory, whole, workload)
    assert best.objective_s == pytest.approx(hop_s + blocks * block_s)
    found = OptimalPlacement(ConservativePlacement(), smaller_caches=(1 / blocks**2,)).place(
        given_inventory, workload
    )
    assert found.notes["objective_s"] == pytest.approx(best.objective_s)
    assert found.notes["optimal"] == 1.0
