"""All placements: within memory, no worse than what they begin with, and what is missing."""

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inventories import inventory, machine, model, pools

from swarm.errors import MemoryShortError, MissingBlocksError, SwarmError, UsageError
from swarm.routing.inventory import Inventory, Workload
from swarm.routing.layout import Layout
from swarm.routing.placements.best import BestPlacement, cheapest_members, response_s
from swarm.routing.placements.chains import ChainsPlacement
from swarm.routing.placements.conservative import ConservativePlacement
from swarm.routing.planned import best_routes, expect, planned_chains, tokens_per_s
from swarm.routing.policies import PLACEMENTS, placement_named
from swarm.spans import PeerId, Span


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


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["best", "gbp-cr"])  # which ask for the rate
def test_a_rate_that_nobody_could_serve_takes_no_longer_to_plan(name: str) -> None:
    given_inventory = inventory(model(4, 1.0, 0.01), machine("a", 60.0), machine("b", 60.0))
    workload = Workload(10, 90, rate_per_s=1e12)
    layout = placement_named(name, random.Random(0)).place(given_inventory, workload)
    assert not layout.missing()


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
