"""What nobody means to ask: nothing, one of everything, too much of it, and figures on the edge."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inventories import inventory, machine, model
from routing_views import server, swarm

from swarm.errors import MemoryShortError, MissingBlocksError, UsageError
from swarm.routing.chains import mean_response_s
from swarm.routing.fitting import fitting
from swarm.routing.flow_program import FlowProblem, solve
from swarm.routing.hardware import hardware_named, roofline
from swarm.routing.inventory import Workload, tables
from swarm.routing.layout import Layout
from swarm.routing.model_shape import shape_of
from swarm.routing.network import KnownNetwork
from swarm.routing.performance import ChainMode, HopOverhead
from swarm.routing.pipelines import StageCapacity, stage_capacity, water_fill
from swarm.routing.placements.best import cheapest_members
from swarm.routing.placements.chains import place_chains
from swarm.routing.placements.conservative import (
    ConservativePlacement,
    choose_sessions,
    conservative_sizes,
    place_conservatively,
)
from swarm.routing.placements.optimum import layout_cost
from swarm.routing.placements.petals import PetalsServer, should_move, weakest_start
from swarm.routing.planned import tokens_per_s
from swarm.routing.policies import PLACEMENTS, ROUTERS, placement_named, router_named
from swarm.routing.product_program import solve_products
from swarm.routing.router import RouteCosts, RouteRequest
from swarm.sessions.messages import MAX_HOPS
from swarm.spans import PeerId, Span

ME = PeerId("client")


def flat(layers: int) -> StageCapacity:
    return StageCapacity(layers, layers, layers, layers)


# ---- how many fit


def test_three_tenths_hold_three_and_a_byte_less_does_not() -> None:
    assert fitting(0.3, 0.0, 0.1) == 3
    assert fitting(13e9, 0.0, 1e9) == 13
    assert fitting(13e9 - 1, 0.0, 1e9) == 12
    assert fitting(80e9, 80e9 - 4096, 4096) == 1
    assert fitting(1.0, 2.0, 0.5) == 0
    assert fitting(np.array([0.3, 0.29]), 0.0, 0.1).tolist() == [3.0, 2.0]


@given(
    st.integers(1, 80),
    st.integers(1, 1000),
    st.floats(1e8, 2e9),
    st.floats(1e3, 1e8),
)
def test_who_has_just_enough_memory_carries_all_sessions(
    blocks: int, sessions: int, block_bytes: float, cache_bytes: float
) -> None:
    """`M = m (s_m + s_c R)` to the byte, with caches a million times smaller than blocks."""
    memory = blocks * (block_bytes + cache_bytes * sessions)
    given_inventory = inventory(model(80, block_bytes, cache_bytes), machine("a", memory))
    sizes = conservative_sizes(
        given_inventory, tables(given_inventory, Workload(0, 1, sessions)), sessions
    )
    assert sizes.blocks.tolist() == [blocks]
    assert sizes.sessions[0] >= sessions


# ---- one machine, and too much asked of it


@pytest.mark.parametrize("name", PLACEMENTS)
@pytest.mark.parametrize("mode", ChainMode)
def test_one_machine_hosts_everything_or_nobody_does(name: str, mode: ChainMode) -> None:
    """Parallax gives weights no more than a part of the memory, Petals caches 4,096 tokens."""
    alone = inventory(model(4, 1.0, 1e-5), machine("a", 8.0), mode=mode)
    for sessions in (0, 1, 3 if name == "optimum-products" else 20):
        layout = placement_named(name, random.Random(0)).place(alone, Workload(5, 5, sessions))
        assert layout.spans == {PeerId("a"): Span(0, 4)}
    small = inventory(model(4, 1.0, 1e-5), machine("a", 3.9), mode=mode)
    with pytest.raises(MemoryShortError, match="GB more"):
        placement_named(name, random.Random(0)).place(small, Workload(5, 5, 1))


@pytest.mark.parametrize("name", PLACEMENTS)
def test_nobody_hosts_nothing(name: str) -> None:
    with pytest.raises(MemoryShortError, match="GB more"):
        placement_named(name, random.Random(0)).place(inventory(model(4)), Workload(5, 5, 1))


def test_more_sessions_than_fit_are_lowered_to_what_does() -> None:
    given_inventory = inventory(model(4, 1.0, 0.1), machine("a", 3.0), machine("b", 3.0))
    layout = ConservativePlacement().place(given_inventory, Workload(0, 1, 99))
    # two blocks each, and room for five tokens in both of them
    assert layout.notes["sessions"] == 5
    assert place_chains(
        given_inventory, tables(given_inventory, Workload(0, 1)), Workload(0, 1), 10**6
    ) == {}  # fmt: skip
    crowded = layout_cost(given_inventory, layout, Workload(0, 1, 6))
    assert crowded.objective_s == math.inf
    assert layout_cost(given_inventory, layout, Workload(0, 1, 5)).objective_s < 1
    assert layout_cost(given_inventory, Layout(4, {}), Workload(0, 1)).objective_s == math.inf


def test_a_bound_is_told_only_where_it_holds() -> None:
    for mode in ChainMode:
        given_inventory = inventory(model(4), machine("a", 4.0), mode=mode)
        figures = tables(given_inventory, Workload(0, 1))
        layout = place_conservatively(given_inventory, figures, 1)
        assert ("bound_s" in layout.notes) == (mode is ChainMode.RELAY)


@pytest.mark.parametrize("name", ROUTERS)
def test_one_server_and_none(name: str) -> None:
    network = KnownNetwork(ME, {})
    request = RouteRequest(ME, 0, 1)
    router = router_named(name, RouteCosts(), random.Random(0))
    one = swarm(1, server("a", 0, 1))
    for _ in range(3):
        route = router.route(one, network, request)
        assert route is not None
        assert [(hop.peer, hop.start, hop.end) for hop in route.hops] == [("server-a", 0, 1)]
    with pytest.raises(MissingBlocksError) as raised:
        router_named(name, RouteCosts(), random.Random(0)).route(swarm(3), network, request)
    assert raised.value.blocks == ("0:3",)


@pytest.mark.parametrize("name", ["parallax", "two-choices", "jffc", "round-robin"])
def test_a_chain_that_is_too_long_hides_no_other(name: str) -> None:
    """Forty quick servers of a block each, and two slow ones of twenty."""
    short = [server(f"s{n}", n, n + 1, decode_ms_per_block=0.01) for n in range(40)]
    long = [server(f"l{n}", 20 * n, 20 * n + 20, decode_ms_per_block=40.0) for n in range(2)]
    view = swarm(40, *short, *long)
    network = KnownNetwork(ME, {one.peer: 0.0 for one in view.servers})
    router = router_named(name, RouteCosts(overhead=HopOverhead(0.0, 0.0)), random.Random(0))
    for _ in range(3):
        route = router.route(view, network, RouteRequest(ME, 20, 30))
        assert route is not None
        assert len(route.hops) <= MAX_HOPS


# ---- rates and times of nothing


def test_chains_that_take_no_time_or_for_ever() -> None:
    assert mean_response_s([(0.0, 2)], 5.0) == 0.0
    assert mean_response_s([(math.inf, 3), (1.0, 1)], 0.5) == pytest.approx(2.0)
    assert mean_response_s([(math.inf, 3)], 0.5) == math.inf
    assert mean_response_s([], 0.5) == math.inf
    assert mean_response_s([(1.0, 0)], 0.5) == math.inf
    for rate in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="positive rate"):
            mean_response_s([(1.0, 1)], rate)


def test_machines_without_any_time_of_their_own() -> None:
    quick = inventory(model(2), machine("a", 2.0, 0.0))
    assert tokens_per_s(quick, Layout(2, {PeerId("a"): Span(0, 2)})) == math.inf


def test_the_sessions_of_no_requests_and_of_halves() -> None:
    assert choose_sessions(0.0, 60.0) == choose_sessions(5.0, 0.0) == 1
    # 4 + 2, and (sqrt(2.75) - 0.5)^2 + ... = 2.5, which is rounded up as others round
    assert choose_sessions(4.0, 1.0) == 6
    root = math.sqrt(2.75) - 0.5
    assert choose_sessions(root * root * (1 + 1e-12), 1.0) == 3
    for rate, held in ((-1.0, 1.0), (1.0, -1.0), (math.nan, 1.0)):
        with pytest.raises(UsageError, match="at least 0"):
            choose_sessions(rate, held)
    for wrong in ({"rate_per_s": math.nan}, {"held_s": math.inf}, {"sessions": -1}):
        with pytest.raises(UsageError, match="negative"):
            Workload(1, 1, **wrong)


# ---- pipelines


def test_water_finds_its_level_whatever_the_unit_of_power() -> None:
    capacities, power = [flat(13), flat(5), flat(4)], [312.0, 165.0, 82.6]
    expected = water_fill(capacities, power, 20)
    for unit in (1e-15, 1e12, 1e30):
        assert water_fill(capacities, [each * unit for each in power], 20) == expected
    # who has no power gets what the others do not hold
    assert water_fill(capacities, [312e12, 165e12, 0.0], 15) == [(0, 10), (1, 5)]
    assert water_fill(capacities, [312e12, 165e12, 0.0], 20) == [(0, 13), (1, 5), (2, 2)]
    assert water_fill([flat(9)] * 3, [0.0] * 3, 6) == [(0, 2), (1, 2), (2, 2)]
    assert water_fill([flat(2)] * 2, [1.0, 1e9], 4) == [(0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("capacities", "power", "layers", "words"),
    [
        ([], [], 1, "do not hold 1"),
        ([flat(3)], [1.0], 0, "at least one layer"),
        ([flat(3)], [1.0, 2.0], 2, "its power"),
        ([flat(3)], [-1.0], 2, "at least 0"),
        ([flat(3)], [math.nan], 2, "at least 0"),
    ],
)
def test_stages_that_cannot_be_filled(
    capacities: list[StageCapacity], power: list[float], layers: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        water_fill(capacities, power, layers)


def test_machines_smaller_than_a_layer_or_than_what_is_reserved() -> None:
    assert stage_capacity(0.0, 1.0, 5.0) == stage_capacity(-3.0, 1.0, 5.0) == flat(0)
    assert stage_capacity(6.5, 1.0, 3.0) == StageCapacity(6, 3, 3, 0)
    with pytest.raises(UsageError, match="weights"):
        stage_capacity(6.5, 0.0)


# ---- Petals


def test_a_window_as_wide_as_the_model_begins_at_its_first_block() -> None:
    assert weakest_start([3.0, 1.0], 2) == weakest_start([3.0, 1.0], 9) == 0
    assert weakest_start([0.0, 0.0, 1.0], 1) == 0


def test_petals_always_moves_when_it_is_told_to() -> None:
    servers = {
        PeerId("a"): PetalsServer(Span(0, 5), 9.0),
        PeerId("c"): PetalsServer(Span(5, 10), 1.0),
    }
    for quality, expected in ((1.01, Span(0, 5)), (1.0, None), (0.75, None)):
        found = should_move(servers, PeerId("a"), 10, random.Random(0), quality)
        assert found == expected


# ---- programs


def problem(requests: list[float]) -> FlowProblem:
    return FlowProblem(
        2, np.array([2.0]), 1.0, 0.0, np.full((len(requests), 1), 0.1), np.array([0.01]), requests
    )


def test_programs_without_requests_or_places() -> None:
    for requests in ([0.0], [0.0, 0.0]):
        with pytest.raises(UsageError, match="at least one"):
            solve(problem(requests), [[(0, 2)]])
    with pytest.raises(UsageError, match="whole number"):
        solve_products(problem([0.5, 0.5]))
    nowhere = solve(problem([1.0]), [[]])
    assert (nowhere.objective_s, nowhere.starts, nowhere.optimal) == (math.inf, {}, True)
    both = solve(problem([0.5, 0.5]), [[(0, 2)]])
    assert both.objective_s == pytest.approx(0.12)


@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e9])
def test_memory_counts_in_bytes_as_in_gigabytes(unit: float) -> None:
    """Room for 15 sessions on each of two machines, one of them farther away."""
    block, cache = 1.3234 * unit, 0.004817 * unit
    memory = np.full(2, 70 * (block + 15 * cache))
    for requests, slow_share in ((10.0, 0.0), (20.0, 0.25), (40.0, math.inf)):
        asked = FlowProblem(
            70, memory, block, cache, np.array([[0.1, 0.2]]), np.array([0.01, 0.01]), [requests]
        )
        found = solve(asked, [[(0, 70)], [(0, 70)]])
        assert found.objective_s == pytest.approx(0.8 + 0.1 * slow_share, rel=1e-6)


def test_half_a_session_of_each_client_is_told_to_who_plans() -> None:
    given_inventory = inventory(model(2), machine("a", 3.0), clients=2)
    with pytest.raises(UsageError, match="1 requests of 2 clients"):
        placement_named("optimum-products", random.Random(0)).place(
            given_inventory, Workload(0, 2, 1)
        )
    whole = placement_named("optimum-products", random.Random(0)).place(
        given_inventory, Workload(0, 2, 2)
    )
    assert whole.spans == {PeerId("a"): Span(0, 2)}


def test_members_that_do_not_reach_the_end_are_no_chain() -> None:
    none = np.zeros(2)
    assert cheapest_members(5, none, none, np.array([2, 2])) == []
    assert cheapest_members(5, np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.intp)) == []
    assert sorted(cheapest_members(4, none, none, np.array([2, 2]))) == [0, 1]


def test_activations_have_a_type_that_activations_can_have() -> None:
    shape = shape_of(
        {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}, "a model"
    )
    card = hardware_named("rtx-4090")
    assert roofline(card, shape, "float16", "nf4").context_s > 0
    with pytest.raises(UsageError, match="float16"):
        roofline(card, shape, "int8")
    double = replace(card, bandwidth_gb_per_s=2 * card.bandwidth_gb_per_s)
    assert roofline(double, shape).block_s == pytest.approx(roofline(card, shape).block_s / 2)
