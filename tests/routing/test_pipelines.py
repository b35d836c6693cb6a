"""Parallax' phase 1, by the known answers of its own tests and by brute force."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inventories import inventory, machine, model

from swarm.errors import MemoryShortError, UsageError
from swarm.routing.inventory import Workload
from swarm.routing.pipelines import (
    StageCapacity,
    pipeline_score,
    plan_pipelines,
    stage_capacity,
    water_fill,
)
from swarm.routing.placements.parallax import ParallaxPlacement, layer_loads, regions
from swarm.spans import PeerId, Span

LAYER_BYTES, EMBEDDING_BYTES = 3_211_591_680, 1_158_266_880
"""GPT-OSS-120B with weights of one byte: a layer, and the embedding in two bytes."""
WEIGHTS_SHARE = 0.5


def gpu(gib: float) -> StageCapacity:
    return stage_capacity(int(gib * 2**30 * WEIGHTS_SHARE), LAYER_BYTES, EMBEDDING_BYTES)


A80, A40, R5090, R4090 = gpu(80), gpu(40), gpu(32), gpu(24)
TFLOPS = {A80: 312.0, A40: 312.0, R5090: 165.0, R4090: 82.6}


def flat(layers: int) -> StageCapacity:
    return StageCapacity(layers, layers, layers, layers)


def ranges(capacities: Sequence[StageCapacity], layers: int) -> list[list[tuple[int, int]]]:
    """Stages of each pipeline, in order, with k^2 / s*(k) as the score (as Parallax' code)."""
    plan = plan_pipelines(capacities, layers, alpha=1.0)
    found = []
    for chain in plan.members:
        members = [capacities[number] for number in chain]
        start, stages = 0, []
        for _, count in water_fill(members, [TFLOPS.get(one, 100.0) for one in members], layers):
            stages.append((start, start + count))
            start += count
        assert start == layers
        found.append(stages)
    return found


@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        (80, (13, 13, 13, 12)),
        (40, (6, 6, 6, 5)),
        (32, (5, 4, 4, 4)),
        (24, (4, 3, 3, 3)),
        (138, (23, 22, 22, 22)),
        (150, (25, 24, 24, 24)),
    ],
)
def test_capacities(gib: float, expected: tuple[int, int, int, int]) -> None:
    found = gpu(gib)
    assert (found.inner, found.first, found.last, found.only) == expected


def test_a_tied_head_is_reserved_once() -> None:
    tied = stage_capacity(80 * 2**29, LAYER_BYTES, EMBEDDING_BYTES, tied=True)
    assert tied.only == tied.first == 13
    assert gpu(400).inner == 66


@pytest.mark.parametrize(
    ("layers", "capacities", "expected"),
    [
        (21, [A80, R5090, R4090], [13, 5, 3]),
        (15, [A80, R5090], [11, 4]),
        (20, [A80, R5090, R4090], [12, 5, 3]),
        (8, [R5090, R5090], [4, 4]),
    ],
)
def test_water_filling(layers: int, capacities: list[StageCapacity], expected: list[int]) -> None:
    for order in itertools.permutations(capacities):
        found = water_fill(order, [TFLOPS[one] for one in order], layers)
        assert sorted((count for _, count in found), reverse=True) == expected
        for number, count in found:
            assert count <= order[number].inner


SMALLER = {
    "a80": StageCapacity(12, 12, 12, 11),
    "a40": StageCapacity(6, 5, 5, 4),
    "5090": StageCapacity(4, 4, 4, 3),
    "4090": StageCapacity(3, 2, 2, 1),
}
"""What the same machines hold beside 2 GB for CUDA graphs (a later version of the code)."""
FP16 = {"a80": 312.0, "a40": 312.0, "5090": 165.0, "4090": 82.6}


@pytest.mark.parametrize(
    ("layers", "names", "expected"),
    [
        (16, ["a80", "5090", "4090"], [10, 4, 2]),
        (15, ["a80", "5090"], [11, 4]),
        (18, ["a80", "5090", "4090"], [12, 4, 2]),
        (21, ["a80", "5090", "4090", "4090"], [12, 4, 3, 2]),
        (24, ["4090", "a80", "5090", "5090", "4090"], [11, 4, 4, 3, 2]),
        (8, ["5090", "5090"], [4, 4]),
        (7, ["a40", "5090"], [5, 2]),
    ],
)
def test_water_filling_with_less_room(layers: int, names: list[str], expected: list[int]) -> None:
    found = water_fill([SMALLER[one] for one in names], [FP16[one] for one in names], layers)
    assert sorted((count for _, count in found), reverse=True) == expected


def test_the_order_in_which_machines_joined_changes_nothing() -> None:
    """Parallax once forgot to sort them. In the order large, small, large these three hold 30
    layers; the pipeline is filled from the largest on, and holds 29 in every order."""
    for layers, holds in ((29, True), (30, False)):
        for order in itertools.permutations([A80, A80, R4090]):
            if holds:
                assert plan_pipelines(order, layers).stages == (3,)
            else:
                with pytest.raises(UsageError, match="no pipeline"):
                    plan_pipelines(order, layers)


def test_of_equal_scores_the_smaller_number_of_pipelines() -> None:
    """`k^2 / s*`: 1 for one pipeline of one stage and for two of four."""
    nodes = [flat(12), flat(4), flat(4), flat(4)]
    plan = plan_pipelines(nodes, 12, alpha=1.0)
    assert plan.stages == (1, 4)
    assert plan.members == ((0,),)


def test_a_machine_alone_reserves_embedding_and_head() -> None:
    assert water_fill([A80], [312.0], 12) == [(0, 12)]
    with pytest.raises(UsageError, match="do not hold 13"):
        water_fill([A80], [312.0], 13)
    with pytest.raises(UsageError, match="no pipeline"):
        plan_pipelines([A80], 13)


def test_whoever_gets_no_layer_is_left_out() -> None:
    assert water_fill([flat(10), flat(9)], [1000.0, 1.0], 5) == [(0, 5)]


def test_two_equal_pipelines_rather_than_one() -> None:
    found = ranges([A80] * 6, 36)
    assert found == [[(0, 12), (12, 24), (24, 36)]] * 2
    plan = plan_pipelines([A80] * 6, 36, alpha=1.0)
    assert plan.stages == (3, 6)
    scores = [
        pipeline_score(k, int(s), alpha=1.0, compute_s=0.0, rtt_s=1.0)
        for k, s in enumerate(plan.stages, start=1)
    ]
    assert scores == [pytest.approx(1 / 3), pytest.approx(4 / 6)]


def test_the_program_finds_two_pipelines_where_greedy_finds_one() -> None:
    nodes = [A80, A80, A40, A40, R4090, R4090]
    plan = plan_pipelines(nodes, 22, alpha=1.0)
    assert len(plan.members) == 2
    assert plan.stages[0] == 2


def test_known_small_cases() -> None:
    assert ranges([A80], 5) == [[(0, 5)]]
    found = ranges([A80, R4090, R4090], 6)
    assert sorted(found) == [[(0, 3), (3, 6)], [(0, 6)]]
    assert plan_pipelines([A80, R4090, R4090], 6, alpha=1.0).stages[1] == 3
    assert plan_pipelines([A80, R5090, R5090, R4090, R4090], 14).stages[1:] == (math.inf,)
    assert ranges([A80, R5090, R5090, R4090, R4090], 14) == [[(0, 10), (10, 14)]]
    three = plan_pipelines([R4090] * 3, 7)
    assert len(three.members[0]) == 3
    pairs = plan_pipelines([flat(c) for c in (40, 40, 20, 20, 10, 10)], 70, alpha=1.0)
    assert sorted(sorted(chain) for chain in pairs.members) == [[0, 2, 4], [1, 3, 5]]


def test_the_score_weighs_throughput_against_latency() -> None:
    # one pipeline of one stage, or two of three: alpha decides
    nodes = [flat(12), flat(4), flat(4), flat(4)]
    assert len(plan_pipelines(nodes, 12, alpha=0.1, rtt_s=1.0).members) == 1
    assert len(plan_pipelines(nodes, 12, alpha=2.0, rtt_s=1.0).members) == 2
    # where passes take long, stages cost little
    assert len(plan_pipelines(nodes, 12, alpha=0.9, compute_s=100.0).members) == 2
    assert pipeline_score(3, 9, alpha=2.0, compute_s=0.5, rtt_s=0.1) == pytest.approx(9 / 0.8)


def fewest_stages(capacities: Sequence[int], layers: int, pipelines: int) -> float:
    """By trying all assignments."""
    best = math.inf
    for owners in itertools.product(range(pipelines + 1), repeat=len(capacities)):
        held = [0] * (pipelines + 1)
        for owner, capacity in zip(owners, capacities, strict=True):
            held[owner] += capacity
        if min(held[:pipelines]) >= layers:
            best = min(best, sum(owner < pipelines for owner in owners))
    return best


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(1, 14), st.randoms())
def test_stages_are_the_fewest_whatever_the_order(
    capacities: list[int], layers: int, rng: object
) -> None:
    if sum(capacities) < layers:
        with pytest.raises(UsageError):
            plan_pipelines([flat(one) for one in capacities], layers)
        return
    plan = plan_pipelines([flat(one) for one in capacities], layers)
    for pipelines, stages in enumerate(plan.stages[:3], start=1):
        assert stages == fewest_stages(capacities, layers, pipelines)
    used = [number for chain in plan.members for number in chain]
    assert len(set(used)) == len(used) == plan.stages[len(plan.members) - 1]
    for chain in plan.members:
        assert sum(capacities[number] for number in chain) >= layers
    shuffled = list(capacities)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    again = plan_pipelines([flat(one) for one in shuffled], layers)
    assert again.stages == plan.stages
    assert len(again.members) == len(plan.members)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.floats(0.1, 500)), min_size=1, max_size=8),
    st.integers(1, 60),
)
def test_water_filling_is_fair(machines: list[tuple[int, float]], layers: int) -> None:
    capacities = [flat(capacity) for capacity, _ in machines]
    power = [each for _, each in machines]
    if sum(capacity for capacity, _ in machines) < layers:
        with pytest.raises(UsageError):
            water_fill(capacities, power, layers)
        return
    counts = dict(water_fill(capacities, power, layers))
    assert sum(counts.values()) == layers
    for one, other in itertools.permutations(range(len(machines)), 2):
        held, others = counts.get(one, 0), counts.get(other, 0)
        assert held <= machines[one][0]
        if others < machines[other][0]:
            # one more there, one fewer here would not be fairer by a whole layer
            assert (held - 1) / power[one] <= (others + 1) / power[other] + 1e-6


def test_many_different_machines_are_planned_in_bounded_time() -> None:
    rng = np.random.default_rng(1)
    capacities = [flat(int(one)) for one in rng.integers(3, 40, 60)]
    plan = plan_pipelines(capacities, 80)
    used = [number for chain in plan.members for number in chain]
    assert len(set(used)) == len(used)
    assert len(plan.members) >= sum(one.inner for one in capacities) // 80 * 0.7


def test_load_leaves_with_the_machine() -> None:
    given_inventory = inventory(model(4), machine("a", 8.0), machine("b", 8.0))
    spans = {PeerId("a"): Span(0, 4), PeerId("b"): Span(0, 2)}
    before = layer_loads(given_inventory, {PeerId("a"): Span(0, 4)})
    assert layer_loads(given_inventory, spans).tolist() == [4.0, 4.0, 1.0, 1.0]
    del spans[PeerId("b")]
    assert layer_loads(given_inventory, spans).tolist() == before.tolist() == [1.0] * 4


def test_regions_are_clusters_of_round_trips() -> None:
    place = np.array([0.0, 1.0, 2.0, 100.0, 101.0, 102.0, 300.0, 301.5])
    rtt = np.abs(place[:, None] - place[None, :]) / 1000
    assert sorted(regions(rtt)) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    shuffled = np.array([7, 0, 3, 6, 1, 5, 2, 4])
    found = regions(rtt[np.ix_(shuffled, shuffled)])
    again = sorted(sorted(shuffled[one].tolist()) for one in found)
    assert again == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert regions(np.zeros((1, 1))) == [[0]]
    even = np.full((5, 5), 0.05)
    assert regions(even) == [[0, 1, 2, 3, 4]]


def test_a_pipeline_stays_in_its_region() -> None:
    near = {f"near-{n}": 0.002 for n in range(3)}
    machines = [machine(name, 10.0) for name in near] + [
        machine(f"far-{n}", 10.0) for n in range(3)
    ]
    names = [one.peer for one in machines]
    rtt = np.full((7, 7), 0.2)
    rtt[:3, :3] = rtt[3:6, 3:6] = 0.002
    given_inventory = inventory(model(15), *machines)
    from swarm.routing.inventory import Inventory
    from swarm.routing.network import MatrixNetwork

    network = MatrixNetwork([*names, *given_inventory.clients], rtt / 2)
    apart = Inventory(given_inventory.model, tuple(machines), given_inventory.clients, network)
    layout = ParallaxPlacement().place(apart, Workload(1, 1))
    assert layout.notes["pipelines"] == 2
    for group in (names[:3], names[3:]):
        starts = sorted(layout.spans[name].start for name in group)
        assert starts == [0, 5, 10] or sorted(len(layout.spans[n]) for n in group) == [3, 6, 6]


def test_machines_are_weighed_in_one_unit() -> None:
    """One is known by its data sheet, the other was measured to be twice as fast."""
    sheet = machine("sheet", 20.0, 0.002, flops_per_s=1e12)
    measured = machine("measured", 20.0, 0.001)
    layout = ParallaxPlacement().place(inventory(model(15), sheet, measured), Workload(1, 1))
    assert len(layout.spans[PeerId("sheet")]) == 5
    assert len(layout.spans[PeerId("measured")]) == 10
    both = replace(measured, flops_per_s=4e12)
    layout = ParallaxPlacement().place(inventory(model(15), sheet, both), Workload(1, 1))
    assert len(layout.spans[PeerId("measured")]) == 12


def test_too_small_a_swarm_is_told_what_is_missing() -> None:
    with pytest.raises(MemoryShortError, match=r"needs 12\.3 GB more"):
        ParallaxPlacement().place(inventory(model(10, 1e9), machine("a", 3.1e9)), Workload(1, 1))
