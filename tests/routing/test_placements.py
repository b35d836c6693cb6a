"""Placements: known answers, bounds, and brute force."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inventories import BLOOM, inventory, machine, model, pools

from swarm.errors import MemoryShortError, MissingBlocksError, SwarmError, UsageError
from swarm.routing.chains import mean_response_s
from swarm.routing.flow_program import FlowProblem, solve
from swarm.routing.inventory import Inventory, Machine, Workload, tables
from swarm.routing.layout import Layout, view_of
from swarm.routing.performance import ServerSpeed
from swarm.routing.placements.best import BestPlacement, cheapest_members, response_s
from swarm.routing.placements.chains import ChainsPlacement, place_chains
from swarm.routing.placements.conservative import (
    ConservativePlacement,
    choose_sessions,
    conservative_sizes,
    most_sessions,
    place_conservatively,
)
from swarm.routing.placements.optimum import OptimalPlacement, layout_cost
from swarm.routing.placements.petals import (
    PetalsPlacement,
    PetalsServer,
    should_move,
    weakest_start,
)
from swarm.routing.planned import best_routes, expect, planned_chains, tokens_per_s
from swarm.routing.policies import PLACEMENTS, placement_named
from swarm.routing.product_program import solve_products
from swarm.spans import PeerId, Span

RESERVE = 2 * 2**30


def bloom_machine(memory_gb: float, mig: bool = False) -> Machine:
    return Machine(
        PeerId(f"{'mig' if mig else 'a100'}-{memory_gb}"),
        memory_gb * 1e9,
        ServerSpeed(0.0, 0.0162 if mig else 0.0032),
        max_blocks=4 if mig else None,
    )


@pytest.mark.parametrize(
    ("memory_gb", "mig", "blocks"),
    [
        (79.13, False, 49),
        (84.97, False, 53),
        (86.13, False, 53),
        (8.2, True, 3),
        (9.1, True, 4),
        (10.2, True, 4),
    ],
)
def test_petals_numbers_of_blooms_blocks(memory_gb: float, mig: bool, blocks: int) -> None:
    one = bloom_machine(memory_gb, mig)
    placement = PetalsPlacement(random.Random(0), reserve_bytes=RESERVE)
    assert placement.num_blocks(inventory(BLOOM, one), one) == blocks


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
    # All sessions fit on the best chains (Lemma 3), so the linear programme finds no better one.
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


# ---- chains


@given(
    st.lists(st.floats(0.01, 10.0), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(0, 3),
)
def test_gbp_cr_is_optimal_for_equal_memories(times: list[float], blocks: int, spare: int) -> None:
    """The rate of disjoint chains over machines that hold equally many blocks."""
    size = max(1, blocks // 2 + spare % blocks)
    machines = [machine(f"m{n}", float(size), time / size) for n, time in enumerate(times)]
    given_inventory = inventory(model(blocks), *machines, rtt_s=0.0)
    figures = tables(given_inventory, Workload(0, 2))
    spans = place_chains(given_inventory, figures, Workload(0, 2), 1)
    length = -(-blocks // min(size, blocks))
    rate, chain, reached = 0.0, 0.0, 0
    for peer in sorted(spans, key=lambda peer: list(spans).index(peer)):
        assert spans[peer].start <= reached
        number = int(peer[1:])
        chain += times[number] * min(size, blocks) / size
        reached = spans[peer].end
        if reached == blocks:
            rate, chain, reached = rate + 1 / chain, 0.0, 0
    own = [time * min(size, blocks) / size for time in times]
    assert rate == pytest.approx(best_rate(own, length))


def best_rate(times: Sequence[float], length: int) -> float:
    """By trying all partitions into chains of `length` machines."""
    best = 0.0
    for chain in itertools.combinations(range(len(times)), length):
        first = 1 / sum(times[number] for number in chain)
        rest = [time for number, time in enumerate(times) if number not in chain]
        best = max(best, first + best_rate(rest, length))
    return best


def erlang_c_response_s(service_s: float, servers: int, rate: float) -> float:
    load = rate * service_s
    top = load**servers / math.factorial(servers) * servers / (servers - load)
    waiting = top / (sum(load**k / math.factorial(k) for k in range(servers)) + top)
    return service_s + waiting / (servers / service_s - rate)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (1, 0.95), (4, 0.7), (30, 0.9)])
def test_theorem_4_is_erlangs_formula_for_equal_slots(servers: int, load: float) -> None:
    service_s = 2.0
    rate = load * servers / service_s
    expected = erlang_c_response_s(service_s, servers, rate)
    for fastest_first in (True, False):
        found = mean_response_s([(service_s, servers)], rate, fastest_first=fastest_first)
        assert found == pytest.approx(expected)


def test_theorem_4_with_unequal_chains() -> None:
    chains = [(1.0, 2), (5.0, 3)]
    low = mean_response_s(chains, 1.0)
    high = mean_response_s(chains, 1.0, fastest_first=False)
    assert 1.0 < low < high < 5.0
    assert mean_response_s(chains, 0.001) == pytest.approx(1.0, rel=1e-2)
    assert mean_response_s(chains, 2.7) == math.inf
    assert mean_response_s([(0.01, 3000)], 2000.0) == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(UsageError):
        mean_response_s(chains, 0.0)


@given(pools(max_machines=6, max_blocks=8))
def test_planned_chains_have_the_room_that_they_claim(pool: tuple[Inventory, Workload]) -> None:
    given_inventory, workload = pool
    assume(given_inventory.model.cache_bytes_per_token > 0)
    try:
        layout = ChainsPlacement().place(given_inventory, workload)
    except MemoryShortError:
        return
    view = view_of(given_inventory, layout, workload.prompt_tokens)
    room = {server.peer: server.cache_tokens_free for server in view.servers}
    assert layout.chains
    services = [chain.service_s for chain in layout.chains]
    assert services == sorted(services)
    for chain in layout.chains:
        assert chain.capacity >= 1
        assert [hop.start for hop in chain.hops] == [0, *(hop.end for hop in chain.hops[:-1])]
        assert chain.hops[-1].end == given_inventory.model.num_blocks
        for hop in chain.hops:
            room[PeerId(hop.peer)] -= (
                chain.capacity * (hop.end - hop.start) * workload.session_tokens
            )
    assert min(room.values()) >= 0


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.floats(0, 1), st.floats(0, 0.2)), min_size=1, max_size=5
    ),
    st.integers(1, 10),
)
def test_the_cheapest_members_are_found(
    machines: list[tuple[int, float, float]], blocks: int
) -> None:
    most, hop_s, block_s = (np.array(column) for column in zip(*machines, strict=True))

    def cost(members: Sequence[int]) -> float:
        left, total = blocks, 0.0
        for number in sorted(members, key=lambda number: block_s[number]):
            used = min(left, int(most[number]))
            total += hop_s[number] + block_s[number] * used
            left -= used
        return total if left == 0 else math.inf

    every = range(len(machines))
    best = min(
        cost(members)
        for size in range(1, len(machines) + 1)
        for members in itertools.combinations(every, size)
    )
    assume(best < math.inf)
    found = cheapest_members(blocks, hop_s, block_s, most)
    assert cost(found) == pytest.approx(best)


# ---- the programs


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


# ---- Petals' rule


def test_the_weakest_window() -> None:
    assert weakest_start([3, 1, 2, 1, 5], 2) == 1
    assert weakest_start([0, 0, 0], 1) == 0
    assert weakest_start([5, 5, 1, 9, 1], 1) == 2


def test_a_server_moves_when_the_weakest_block_gains_a_quarter() -> None:
    def swarm(strong: float) -> dict[PeerId, PetalsServer]:
        return {
            PeerId("a"): PetalsServer(Span(0, 5), strong),
            PeerId("b"): PetalsServer(Span(0, 5), strong),
            PeerId("c"): PetalsServer(Span(5, 10), 1.0),
        }

    # from (2, 2 | 1) to (1 | 2): the weakest block stays at 1: nobody moves
    assert should_move(swarm(1.0), PeerId("b"), 10, random.Random(0)) is None
    # from (6 | 1) to (3 | 4): 1/3 < 0.75
    assert should_move(swarm(3.0), PeerId("b"), 10, random.Random(0)) == Span(5, 10)
    # from (2.4 | 1) to (1.2 | 2.2): 1/1.2 is not enough
    assert should_move(swarm(1.2), PeerId("b"), 10, random.Random(0)) is None
    assert should_move(swarm(1.4), PeerId("b"), 10, random.Random(0)) == Span(5, 10)


def test_nobody_leaves_a_hole() -> None:
    servers = {
        PeerId("a"): PetalsServer(Span(0, 5), 9.0),
        PeerId("c"): PetalsServer(Span(5, 10), 1.0),
    }
    assert should_move(servers, PeerId("a"), 10, random.Random(0)) is None


# ---- all of them


@settings(max_examples=40, deadline=None)
@given(
    pools(max_machines=6, max_blocks=10),
    st.sampled_from([name for name in PLACEMENTS if not name.startswith("optimum")]),
)
def test_every_placement_covers_within_memory(pool: tuple[Inventory, Workload], name: str) -> None:
    given_inventory, workload = pool
    try:
        layout = placement_named(name, random.Random(0)).place(given_inventory, workload)
    except (MemoryShortError, MissingBlocksError) as error:
        assert "GB" in str(error) or "machine" in str(error)
        return
    assert not layout.missing()
    for peer, span in layout.spans.items():
        held = given_inventory.model.block_bytes * len(span)
        assert held <= given_inventory.machine(peer).memory_bytes + 1e-9
    figures = expect(given_inventory, layout, workload)
    assert figures.least_hosts >= 1
    assert 0 < figures.tpot_s < math.inf


@settings(max_examples=30, deadline=None)
@given(pools(max_machines=6, max_blocks=10, max_sessions=6))
def test_ours_is_never_worse_than_its_seeds(pool: tuple[Inventory, Workload]) -> None:
    given_inventory, workload = pool
    try:
        best = BestPlacement().place(given_inventory, workload)
    except MemoryShortError:
        return
    own = response_s(given_inventory, best, workload)
    for other in (ConservativePlacement(), ChainsPlacement()):
        try:
            layout = other.place(given_inventory, workload)
        except SwarmError:
            continue
        theirs = response_s(given_inventory, layout, workload)
        assert own <= theirs * (1 + 1e-6) or theirs == math.inf


def test_what_is_missing_is_told_in_gigabytes() -> None:
    poor = inventory(model(10, 1e9, 1e6), machine("a", 3e9), machine("b", 2.5e9))
    workload = Workload(10, 90)
    for name in PLACEMENTS:
        with pytest.raises(MemoryShortError, match=r"\d\.\d GB more"):
            placement_named(name, random.Random(0)).place(poor, workload)
    with pytest.raises(UsageError, match="cg-bp"):
        placement_named("by-hand", random.Random(0))


def test_expectations_of_a_known_layout() -> None:
    given_inventory = inventory(
        model(4, 1.0, 0.01), machine("a", 6.0, 0.010), machine("b", 6.0, 0.010), rtt_s=0.1
    )
    layout = Layout(4, {PeerId("a"): Span(0, 2), PeerId("b"): Span(2, 4)})
    figures = expect(given_inventory, layout, Workload(0, 10))
    assert figures.least_hosts == 1
    assert figures.tpot_s == pytest.approx(2 * 0.1 + 4 * 0.010)
    assert figures.tokens_per_s == pytest.approx(1 / 0.020)
    assert figures.sessions == 400 // 20
    doubled = Layout(4, {PeerId("a"): Span(0, 4), PeerId("b"): Span(0, 4)})
    assert tokens_per_s(given_inventory, doubled) == pytest.approx(2 / 0.040)
    assert expect(given_inventory, Layout(4, {}), Workload(0, 10)).least_hosts == 0
    with pytest.raises(MissingBlocksError, match="0:4"):
        best_routes(given_inventory, Layout(4, {}), Workload(0, 10))
    chains = planned_chains(given_inventory, layout, Workload(0, 10))
    assert [(hop.start, hop.end) for hop in chains[0].hops] == [(0, 2), (2, 4)]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: machine("a", -1.0), "memory"),
        (lambda: machine("a", 1.0, max_blocks=-1), "blocks"),
        (lambda: model(0), "at least one"),
        (lambda: model(2, 0.0), "weights"),
        (lambda: Workload(-1, 1), "prompt"),
        (lambda: Workload(1, 1, -1), "negative"),
        (lambda: inventory(model(1), machine("a", 1.0), machine("a", 1.0)), "twice"),
        (lambda: inventory(model(1), machine("a", 1.0), clients=0), "client"),
    ],
)
def test_bad_input_is_refused_with_a_reason(build: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build()  # type: ignore[operator]
