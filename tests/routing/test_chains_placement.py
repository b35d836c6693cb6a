"""GBP-CR's chains, and the response times of Theorem 4."""

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from inventories import inventory, machine, model, pools

from swarm.errors import MemoryShortError, UsageError
from swarm.routing.chains import mean_response_s
from swarm.routing.inventory import Inventory, Workload, tables
from swarm.routing.layout import view_of
from swarm.routing.placements.chains import ChainsPlacement, place_chains
from swarm.spans import PeerId


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
