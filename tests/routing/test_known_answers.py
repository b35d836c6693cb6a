"""Known answers of the papers and of their authors' code that no other file of this folder has."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inventories import BLOOM, GPT_OSS_120B, inventory, machine, model, pools

from swarm.errors import UsageError
from swarm.routing import pipelines
from swarm.routing.chains import allocate_greedily
from swarm.routing.hardware import hardware_named, roofline
from swarm.routing.hop_graph import HopCosts
from swarm.routing.inventory import HostedModel, Inventory, Machine, Workload, tables
from swarm.routing.layout import Layout
from swarm.routing.model_shape import shape_of
from swarm.routing.performance import ServerSpeed
from swarm.routing.pipelines import StageCapacity, plan_pipelines, stage_capacity, water_fill
from swarm.routing.placements.chains import place_chains
from swarm.routing.placements.conservative import (
    ConservativePlacement,
    conservative_sizes,
    most_sessions,
    place_conservatively,
    sufficient_sessions,
)
from swarm.routing.placements.parallax import (
    ParallaxPlacement,
    layer_loads,
    lightest_span,
    load_variation,
)
from swarm.routing.placements.petals import petals_throughput
from swarm.routing.planned import best_routes, planned_chains
from swarm.spans import PeerId, Span

# ---- Sun et al., arXiv 2512.21884

A100_S, MIG_S = 0.0032197, 0.0162488


def nine_servers() -> Inventory:
    """Two A100 and seven slices of one, round trips as in AboveNet."""
    machines = [
        Machine(PeerId(f"a100-{n}"), 79.13e9, ServerSpeed(0.0, A100_S)) for n in range(2)
    ] + [
        Machine(PeerId(f"mig-{n}"), 8.2e9, ServerSpeed(0.0, MIG_S), max_blocks=4) for n in range(7)
    ]
    return inventory(BLOOM, *machines, rtt_s=0.117)


def test_the_closed_form_of_r_max() -> None:
    given_inventory, workload = nine_servers(), Workload(20, 128)
    figures = tables(given_inventory, workload)
    memory, parts = 2 * 79.13 + 7 * 8.2, 70 + 9
    expected = math.floor((memory - 1.3234 * parts) / (0.008487 * parts))
    assert sufficient_sessions(given_inventory, figures) == expected == 165
    assert sufficient_sessions(given_inventory, figures) <= most_sessions(given_inventory, figures)
    free = replace(BLOOM, cache_bytes_per_token=0.0)
    assert sufficient_sessions(*no_cache(free)) == 1 << 30
    assert sufficient_sessions(*no_cache(replace(free, block_bytes=3e9))) == 0


def no_cache(hosted: HostedModel) -> tuple[Inventory, object]:
    given_inventory = replace(nine_servers(), model=hosted)
    return given_inventory, tables(given_inventory, Workload(20, 128))


def test_r_of_a_rate_is_the_mean_and_a_deviation_but_no_more_than_the_closed_form() -> None:
    given_inventory = nine_servers()
    workload = Workload(20, 128, rate_per_s=0.5)
    figures = tables(given_inventory, workload)
    alone = place_conservatively(given_inventory, figures, 1)
    (route,) = best_routes(given_inventory, alone, workload)
    active = 0.5 * route.request_s(128)
    few = ConservativePlacement().place(given_inventory, workload)
    assert few.notes["sessions"] == round(active + math.sqrt(active)) < 165
    busy = ConservativePlacement().place(given_inventory, replace(workload, rate_per_s=50.0))
    assert busy.notes["sessions"] == 165


def test_the_numbers_of_blocks_that_are_reported() -> None:
    """41 on an A100 and 3 on a slice of one, of the same `R`."""
    machines = [
        Machine(PeerId("a100"), 84.973e9, ServerSpeed(0.0, A100_S)),
        Machine(PeerId("mig"), 8.2e9, ServerSpeed(0.0, MIG_S), max_blocks=4),
    ]
    given_inventory = inventory(BLOOM, *machines)
    figures = tables(given_inventory, Workload(20, 128))
    assert conservative_sizes(given_inventory, figures, 86).blocks.tolist() == [41, 3]


def test_an_a100_with_53_blocks_has_room_for_21_sessions() -> None:
    one = Machine(PeerId("a100"), 80e9, ServerSpeed(0.0, A100_S))
    given_inventory = inventory(replace(BLOOM, num_blocks=53), one)
    layout = Layout(53, {one.peer: Span(0, 53)})
    (chain,) = planned_chains(given_inventory, layout, Workload(20, 128))
    assert chain.capacity == 21


@given(pools(max_machines=7, max_blocks=10, clients=2), st.integers(1, 6))
def test_cg_bp_step_by_step(pool: tuple[Inventory, Workload], sessions: int) -> None:
    """Section III-B, written down once more without arrays."""
    given_inventory, workload = pool
    figures = tables(given_inventory, workload)
    blocks = given_inventory.model.num_blocks
    each = figures.block_bytes + figures.cache_bytes * sessions
    count = [min(math.floor(memory / each + 1e-9), blocks) for memory in figures.memory]
    able = [j for j in range(len(count)) if count[j] > 0]
    if sum(count) < blocks:
        return
    tt = {j: figures.decode_block_s[j] + figures.decode_hop_s[:, j].max() / count[j] for j in able}
    cap = {
        j: math.floor((figures.memory[j] - figures.block_bytes * count[j])
                      / (figures.cache_bytes * count[j]) + 1e-9)
        if figures.cache_bytes else 1 << 30
        for j in able
    }  # fmt: skip
    most = max(tt.values()) + 1
    carried, time = [0] * blocks, [sessions * most] * blocks
    starts: dict[PeerId, int] = {}
    for j in sorted(able, key=lambda j: tt[j]):
        windows = range(blocks - count[j] + 1)
        useful = [a for a in windows if any(c < sessions for c in carried[a : a + count[j]])]
        if useful:
            best = max(sum(time[a : a + count[j]]) for a in useful)
            start = next(a for a in useful if sum(time[a : a + count[j]]) >= best - 1e-9 * best)
        else:
            start = min(windows, key=lambda a: (sorted(carried[a : a + count[j]]), a))
        for b in range(start, start + count[j]):
            time[b] -= (most - tt[j]) * min(max(sessions - carried[b], 0), cap[j])
            carried[b] += cap[j]
        starts[given_inventory.machines[j].peer] = start
    if min(carried) < sessions:
        return
    layout = place_conservatively(given_inventory, figures, sessions)
    assert layout.notes["sessions"] == sessions
    assert {peer: span.start for peer, span in layout.spans.items()} == starts


# ---- Sun, He, Hou, arXiv 2604.14993


def test_gbp_cr_by_hand() -> None:
    """Times of a whole job per block 1.5, 2, 2.5, 3 and 7: a and b make the first chain, c and d
    the second, and e is not needed at that rate."""
    machines = [
        machine("e", 2.0, 6.0), machine("c", 3.0, 1.5 + 1 - 1 / 3), machine("a", 2.0, 1.0),
        machine("d", 2.0, 2.5), machine("b", 4.0, 1.75),
    ]  # fmt: skip
    given_inventory = inventory(model(4), *machines, rtt_s=1.0)
    workload = Workload(0, 2, rate_per_s=0.7 * (1 / 11.0) + 1e-6)
    figures = tables(given_inventory, workload)
    whole = figures.request_hop_s(2).mean(axis=0)
    assert whole.tolist() == [2.0] * 5
    per_block = {
        one.peer: float((2.0 + figures.request_block_s(2)[n] * size) / size)
        for n, (one, size) in enumerate(zip(given_inventory.machines, [2, 3, 2, 2, 4], strict=True))
    }
    order = sorted(per_block, key=lambda peer: per_block[peer])
    assert order == ["a", "b", "c", "d", "e"]
    spans = place_chains(given_inventory, figures, workload, 1)
    # b reaches beyond the model after a, so it begins earlier; its chain then is complete
    assert spans[PeerId("a")] == Span(0, 2)
    assert spans[PeerId("b")] == Span(0, 4)
    assert spans[PeerId("c")] == Span(0, 3)
    assert spans[PeerId("d")] == Span(2, 4)
    # 1 / T of both chains is below the rate / 0.7 only without the second one
    assert PeerId("e") not in spans
    first_s = 2.0 + 2 * 1.0 + 2.0 + 4 * 1.75
    slower = replace(workload, rate_per_s=0.7 / first_s - 1e-6)
    assert set(place_chains(given_inventory, figures, slower, 1)) == {"a", "b"}


def test_gca_by_hand() -> None:
    """a[0,2) for 3, b[2,4) for 2, c[1,4), which runs two blocks after a, for 3 sessions."""
    none = np.zeros(3)
    costs = HopCosts(
        num_blocks=4,
        start=np.array([0, 2, 1]),
        end=np.array([2, 4, 4]),
        usable=np.ones(3, dtype=np.bool_),
        enter_s=none,
        leave_s=none,
        fixed_s=none,
        block_s=np.array([1.0, 1.0, 2.0]),
        between_s=np.zeros((3, 3)),
        wait_s=np.zeros((3, 5)),
    )
    needed = [[0, 1, 2, 3, 4]] * 3
    found = allocate_greedily(costs, [6, 4, 7], needed)
    taken = [([part.server for part in chain.parts], capacity) for chain, capacity in found]
    assert taken == [([0, 1], 2), ([0, 2], 1)]
    assert [chain.cost_s for chain, _ in found] == [4.0, 6.0]


# ---- Petals


@pytest.mark.parametrize(
    ("blocks", "forward", "network", "expected"),
    [
        (49, 20829.4, 3020.4, 20829.4 / 25),
        (3, 2757.7, 3138.1, 2757.7 / 2),
        (4, 2757.7, 3138.1, 2757.7 / 2.5),
        (1, 20829.4, 3020.4, 3020.4),
    ],
)
def test_throughput_that_petals_announces(
    blocks: int, forward: float, network: float, expected: float
) -> None:
    one = machine("a", 1.0)
    assert petals_throughput(one, blocks, forward, network) == pytest.approx(expected)
    relayed = petals_throughput(replace(one, relayed=True), blocks, forward, network)
    assert relayed == pytest.approx(min(forward / ((blocks + 1) / 2), 0.2 * network))


# ---- Parallax, arXiv 2509.26182

LAYER_BYTES, EMBEDDING_BYTES = 3_211_591_680, 1_158_266_880


def gpu(gib: float) -> StageCapacity:
    return stage_capacity(int(gib * 2**30 * 0.5), LAYER_BYTES, EMBEDDING_BYTES)


A80, A40, R5090, R4090 = gpu(80), gpu(40), gpu(32), gpu(24)


def planned(gib: Sequence[float], layers: int) -> tuple[int, int]:
    """How many pipelines, and how many machines are in one."""
    plan = plan_pipelines([gpu(one) for one in gib], layers, alpha=1.0)
    return len(plan.members), sum(map(len, plan.members))


def test_members_come_and_go() -> None:
    # 44 layers over machines of 138 GiB: two, three, four, three, four, two of them
    assert [planned([138] * count, 44) for count in (2, 3, 4, 3, 4, 2)] == [
        (1, 2), (1, 2), (2, 4), (1, 2), (2, 4), (1, 2),
    ]  # fmt: skip
    # 12 layers and 400 GiB: a pipeline each
    assert [planned([400] * count, 12)[0] for count in (1, 2)] == [1, 2]
    # 28 layers and three of 138 GiB, whoever left last
    assert planned([138] * 3, 28)[0] == 1
    assert planned([80, 32], 12) == (1, 1)
    for few in ([24], [80]):
        with pytest.raises(UsageError, match="no pipeline"):
            planned(few, 20)


@pytest.mark.parametrize(
    ("capacities", "layers", "expected"),
    [
        ([A80] * 6, 36, [3, 3]),
        ([A80, A80, A40, A40, R4090, R4090], 22, [2]),
        ([A80, R5090, R5090, R4090, R4090], 14, [2]),
        ([A80], 5, [1]),
        ([R4090] * 3, 7, [3]),
        ([A80, A80, R4090], 12, [1, 1]),
    ],
)
def test_the_greedy_allocator(
    capacities: list[StageCapacity],
    layers: int,
    expected: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the program has too many states, the largest machines fill one pipeline after
    another."""
    monkeypatch.setattr(pipelines, "MAX_STATES", 0)
    plan = plan_pipelines(capacities, layers)
    assert [len(chain) for chain in plan.members] == expected


@given(
    st.lists(st.tuples(st.sampled_from([24, 32, 40, 80, 138]), st.floats(1e-3, 400)), min_size=1),
    st.integers(1, 80),
)
def test_embedding_and_head_have_room_where_they_really_are(
    machines: list[tuple[int, float]], layers: int
) -> None:
    """Others reserve for a last machine that then gets no layer."""
    capacities = [gpu(gib) for gib, _ in machines]
    try:
        stages = water_fill(capacities, [power for _, power in machines], layers)
    except UsageError:
        return
    assert sum(count for _, count in stages) == layers
    for at, (number, count) in enumerate(stages):
        limit = capacities[number].inner
        if len(stages) == 1:
            limit = capacities[number].only
        elif at == 0:
            limit = capacities[number].first
        elif at == len(stages) - 1:
            limit = capacities[number].last
        assert 0 < count <= limit


def test_a_machine_that_gets_no_layer_does_not_hold_the_head() -> None:
    assert water_fill([A80, R4090], [312.0, 0.001], 12) == [(0, 12)]
    assert water_fill([A80, R4090], [312.0, 0.001], 13) == [(0, 12), (1, 1)]


def test_a_joining_machine_takes_the_lightest_layers_and_leaves_no_trace() -> None:
    given_inventory = inventory(
        model(6), machine("big", 12.0), machine("left", 3.5), machine("right", 4.5),
        machine("late", 4.0),
    )  # fmt: skip
    spans = {
        PeerId("big"): Span(0, 6), PeerId("left"): Span(0, 3), PeerId("right"): Span(3, 6),
    }  # fmt: skip
    before = layer_loads(given_inventory, spans)
    assert int(before.argmin()) == 0
    span = lightest_span(given_inventory, spans, 2)
    assert span == Span(0, 2)
    joined = layer_loads(given_inventory, {**spans, PeerId("late"): span})
    assert joined[0] > before[0]
    assert joined[2:].tolist() == before[2:].tolist()
    assert layer_loads(given_inventory, spans).tolist() == before.tolist()


def test_all_is_placed_anew_when_loads_vary_too_much() -> None:
    machines = [machine(name, 8.0) for name in "abc"]
    given_inventory = inventory(model(4), *machines)
    placement = ParallaxPlacement()
    even = Layout(4, {one.peer: Span(0, 4) for one in machines})
    assert load_variation(given_inventory, dict(even.spans)) == 0.0
    kept = placement.adjust(given_inventory, Workload(1, 1), even)
    assert kept.spans == even.spans
    # loads 5, 5, 2, 2: mean 3.5, standard deviation 1.5
    odd = {PeerId("a"): Span(0, 4), PeerId("b"): Span(0, 4), PeerId("c"): Span(0, 2)}
    variation = load_variation(given_inventory, odd)
    assert variation == pytest.approx(1.5 / 3.5)
    moved = placement.adjust(given_inventory, Workload(1, 1), Layout(4, odd))
    assert moved.spans != odd
    patient = replace(placement, most_variation=0.5)
    assert patient.adjust(given_inventory, Workload(1, 1), Layout(4, odd)).spans == odd
    # one that left opens a gap; those that are left are placed anew
    split = Layout(4, {PeerId("a"): Span(0, 2), PeerId("b"): Span(2, 4), PeerId("x"): Span(2, 4)})
    rest = inventory(model(4), machines[0])
    assert placement.adjust(rest, Workload(1, 1), split).spans == {PeerId("a"): Span(0, 4)}
    # one that came joins
    grown = placement.adjust(given_inventory, Workload(1, 1), replace(even, spans={
        PeerId("a"): Span(0, 4), PeerId("b"): Span(0, 4)}))  # fmt: skip
    assert grown.spans == even.spans


GPT_OSS = shape_of(GPT_OSS_120B)
ROUTER_BYTES = 2880 * 128  # Parallax leaves it out


def test_bytes_that_a_decoded_token_reads() -> None:
    """Weights of one byte (ours: with 1 % of scales), a cache of two for 4,096 tokens."""
    cached = 4096 * GPT_OSS.cache_bytes_per_token("bfloat16")
    assert GPT_OSS.touched_parameters(1) - ROUTER_BYTES + cached == pytest.approx(134_463_488)
    a100, rtx_4090 = hardware_named("a100-80gb"), hardware_named("rtx-4090")
    for card, layers, ends, expected_ms in (
        (a100, 12, 0, 0.0659), (a100, 12, 1, 0.1133), (rtx_4090, 4, 1, 0.4207),
    ):  # fmt: skip
        speed = roofline(card, replace(GPT_OSS, shared_parameters=0), "bfloat16", "fp8")
        block_s = speed.decode_s(1, 1, 4096) - speed.pass_s
        end_s = ends * EMBEDDING_BYTES / (card.bandwidth_gb_per_s * 1e9)
        assert 1e3 * (layers * block_s + end_s) / layers == pytest.approx(expected_ms, rel=0.012)


def test_operations_of_a_layer() -> None:
    """285,327,360 of them with 4,096 tokens cached, by a formula that takes the queries to be as
    wide as the model (they are 4,096 wide, not 2,880); the router is left out there."""
    context, width, queries = 4 * 2880 * 4096, 2880, 64 * 64
    theirs = GPT_OSS.flops_per_token - 2 * ROUTER_BYTES - 4 * width * (queries - width)
    assert theirs + context == pytest.approx(285_327_360, abs=0.5)
