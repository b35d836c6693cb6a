"""Sun, He, Hou (arXiv 2604.14993): their example of two disjoint chains and a third one, and
Theorem 4 as it is written."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inventories import inventory, machine, model

from swarm.routing.chains import mean_response_s
from swarm.routing.inventory import Inventory, Workload, tables
from swarm.routing.layout import Layout
from swarm.routing.placements.chains import ChainsPlacement, place_chains
from swarm.routing.planned import planned_chains
from swarm.spans import PeerId, Span

TINY = 0.001
"""Their epsilon: by which each server is slower than the one before."""


def five_servers() -> Inventory:
    """`L = 3`, `s_m = 1`, `s_c = 0.1`; `j2` has memory 3 and a way of 2, the others 2 and 1."""
    machines = [
        machine(f"j{number}", 3.0 if number == 2 else 2.0, number * TINY) for number in range(1, 6)
    ]
    # Two ways there and back: one for the prompt of no tokens, one for the second token.
    rtt = {one.peer: 1.0 if one.peer == "j2" else 0.5 for one in machines}
    return inventory(model(3, 1.0, 0.05), *machines, rtt_s=rtt)


WORKLOAD = Workload(0, 2)
SPANS = {"j1": Span(0, 1), "j2": Span(1, 3), "j3": Span(0, 1), "j4": Span(1, 2), "j5": Span(2, 3)}


def test_gbp_cr_makes_the_two_chains_of_their_example() -> None:
    given_inventory = five_servers()
    figures = tables(given_inventory, WORKLOAD)
    assert figures.cache_bytes == pytest.approx(0.1)
    assert place_chains(given_inventory, figures, WORKLOAD, 1) == SPANS
    # The first chain alone serves 0.7 / (3 + 5 epsilon) requests a second.
    enough = Workload(0, 2, rate_per_s=0.7 / (3 + 5 * TINY) - 1e-6)
    assert set(place_chains(given_inventory, figures, enough, 1)) == {"j1", "j2"}
    more = Workload(0, 2, rate_per_s=0.7 / (3 + 5 * TINY) + 1e-6)
    assert place_chains(given_inventory, figures, more, 1) == SPANS


def test_gca_finds_five_sessions_on_each_of_three_chains() -> None:
    layout = Layout(3, {PeerId(peer): span for peer, span in SPANS.items()})
    found = planned_chains(five_servers(), layout, WORKLOAD)
    assert [[hop.peer for hop in chain.hops] for chain in found] == [
        ["j1", "j2"], ["j1", "j4", "j5"], ["j3", "j4", "j5"],
    ]  # fmt: skip
    assert [chain.capacity for chain in found] == [5, 5, 5]
    times = [3 + 5 * TINY, 3 + 10 * TINY, 3 + 12 * TINY]
    assert [chain.service_s for chain in found] == pytest.approx(times)
    rate = sum(chain.capacity / chain.service_s for chain in found)
    assert rate == pytest.approx(sum(5 / time for time in times))


def test_c_is_tuned_by_the_bound_and_is_stable() -> None:
    """Fifteen sessions at once are served at 5 a second at most."""
    for rate in (0.1, 2.0, 4.5):
        workload = Workload(0, 2, rate_per_s=rate)
        layout = ChainsPlacement().place(five_servers(), workload)
        chains = [(chain.service_s, chain.capacity) for chain in layout.chains]
        assert mean_response_s(chains, rate) == layout.notes["response_bound_s"] < math.inf


def occupancy(deaths: Sequence[float], rate: float) -> float:
    """Equations (16) to (18), from the death rates."""
    total, count = deaths[-1], len(deaths)
    products = [1.0]
    for death in deaths:
        products.append(products[-1] * rate / death)
    normal = sum(products[:-1]) + products[-1] * total / (total - rate)
    load = rate / total
    inside = sum(n * products[n] for n in range(count))
    return (inside + products[-1] * (load / (1 - load) ** 2 + count / (1 - load))) / normal


@given(
    st.lists(st.tuples(st.floats(0.1, 20.0), st.integers(1, 4)), min_size=1, max_size=4),
    st.floats(0.02, 0.98),
    st.randoms(use_true_random=False),
)
def test_theorem_4_as_it_is_written(
    chains: list[tuple[float, int]], load: float, rng: object
) -> None:
    """Equations (14) and (15): so many die a second with the requests on the fastest chains, and on
    the slowest."""
    ordered = sorted(chains)
    slots = sum(capacity for _, capacity in ordered)
    rate = load * sum(capacity / service_s for service_s, capacity in ordered)

    def deaths(order: Sequence[tuple[float, int]]) -> list[float]:
        found = []
        for jobs in range(1, slots + 1):
            left, died = jobs, 0.0
            for service_s, capacity in order:
                died += min(capacity, left) / service_s
                left -= min(capacity, left)
            found.append(died)
        return found

    rng.shuffle(chains)  # type: ignore[attr-defined]
    low = mean_response_s(chains, rate)
    high = mean_response_s(chains, rate, fastest_first=False)
    assert low == pytest.approx(occupancy(deaths(ordered), rate) / rate, rel=1e-6)
    assert high == pytest.approx(occupancy(deaths(ordered[::-1]), rate) / rate, rel=1e-6)
    assert low <= high * (1 + 1e-9)
