"""Routers: against exhaustive search, and the faults of others that ours must not share."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from possible_chains import (
    COSTS,
    ME,
    REQUEST,
    all_chains,
    chain_of,
    known,
    penalties,
    request_s,
    servers_of,
    session,
)
from routing_views import BFLOAT16, round_trips, server, swarm, views

from swarm.errors import MissingBlocksError, SwarmError, UsageError
from swarm.routing.coordinates import Coordinate
from swarm.routing.network import KnownNetwork
from swarm.routing.performance import ChainMode, HopOverhead
from swarm.routing.policies import ROUTERS, router_named
from swarm.routing.router import RouteCosts, Router
from swarm.routing.routers.layers import LayerRouter, TwoChoicesRouter
from swarm.routing.routers.petals import PetalsRouter
from swarm.sessions.messages import MAX_HOPS, Hop
from swarm.spans import PeerId, Span

costs_of_all_kinds = st.builds(
    RouteCosts,
    mode=st.sampled_from(ChainMode),
    overhead=st.sampled_from([HopOverhead(), HopOverhead(0.05, 0.1, 0.001)]),
    activation_bytes=st.sampled_from([0.0, 4000.0]),
)


@settings(max_examples=150)
@given(st.data(), costs_of_all_kinds)
def test_no_chain_is_cheaper_than_the_layer_routers(data: st.DataObject, costs: RouteCosts) -> None:
    view = data.draw(views())
    peers = [one.peer for one in view.servers]
    places = st.sampled_from([(0.0, 0.0, 0.0), (0.05, 0.0, 0.0), (0.0, 0.3, 0.01)])
    network = KnownNetwork(
        ME,
        data.draw(round_trips(view)),
        next_hops_s={
            pair: data.draw(st.sampled_from([0.001, 0.04]))
            for pair in itertools.combinations(peers[:3], 2)
        },
        coordinates={peer: Coordinate(data.draw(places), 0.002) for peer in [*peers[::2], ME]},
        bytes_per_s={peer: data.draw(st.sampled_from([0.0, 1e5, 1e7])) for peer in peers[:2]},
    )
    chains = list(all_chains(view, to_the_end=False))
    router = LayerRouter(costs)
    if not chains:
        with pytest.raises(MissingBlocksError) as raised:
            router.route(view, network, REQUEST)
        assert raised.value.blocks == tuple(map(str, view.missing()))
        return
    route = router.route(view, network, REQUEST)
    found = request_s(view, route.hops, network, costs)
    assert route.request_s(REQUEST.output_tokens) == pytest.approx(found)
    best = min(request_s(view, hops, network, costs) + penalties(view, hops) for hops in chains)
    assert found + penalties(view, route.hops) == pytest.approx(best)
    assert route.hops in chains


@given(st.data())
def test_near_equals_are_nearly_equal(data: st.DataObject) -> None:
    view = data.draw(views())
    network = known(view, data.draw(round_trips(view)))
    assume(not view.missing())
    best = LayerRouter(COSTS).route(view, network, REQUEST)
    rng, fresh = random.Random(data.draw(st.integers(0, 5))), data.draw(st.booleans())
    router = TwoChoicesRouter(COSTS, rng, near_equal=0.1, fresh_loads=fresh)
    route = router.route(view, network, REQUEST)
    assert route.hops in list(all_chains(view, to_the_end=False))
    least = request_s(view, best.hops, network) + penalties(view, best.hops)
    found = request_s(view, route.hops, network) + penalties(view, route.hops)
    # By an old load a server may cost three times as much more.
    assert found <= least * (1.1 if fresh else 1.3) + 1e-9
    waits = {one.peer: one.queue_wait_ms for one in view.servers}
    if len(set(waits.values())) == 1:
        assert found <= least * 1.1 + 1e-9


@given(st.data())
def test_petals_router_finds_the_least_of_its_own_costs(data: st.DataObject) -> None:
    view = data.draw(views())
    network = known(view, data.draw(round_trips(view)))

    def petals_s(hops: tuple[Hop, ...]) -> float:
        total, before = 0.0, ME
        for hop, one in zip(hops, servers_of(view, hops), strict=True):
            total += network.one_way_s(before, one.peer) + 0.018
            total += (hop.end - hop.start) * (one.decode_ms_per_block or 1000 / 300) / 1000
            total += 10.0 * (one.cache_tokens_free < REQUEST.cache_tokens)
            before = one.peer
        return total + network.one_way_s(before, ME)

    chains = list(all_chains(view, to_the_end=True))
    if not chains:
        with pytest.raises(MissingBlocksError):
            PetalsRouter(COSTS).route(view, network, REQUEST)
        return
    route = PetalsRouter(COSTS).route(view, network, REQUEST)
    assert petals_s(route.hops) == pytest.approx(min(map(petals_s, chains)))


@settings(max_examples=60)
@given(st.data(), st.sampled_from(ROUTERS))
def test_every_router_gives_a_chain_within_spans(data: st.DataObject, name: str) -> None:
    view = data.draw(views())
    network = known(view, data.draw(round_trips(view)))
    router = router_named(name, COSTS, random.Random(0))
    try:
        route = router.route(view, network, REQUEST)
    except MissingBlocksError:
        assert view.missing()
        return
    except SwarmError as error:
        assert "room" in str(error)
        return
    assert route is not None
    assert route.hops in list(all_chains(view, to_the_end=False))
    assert route.ttft_s > 0
    assert route.tpot_s > 0


@pytest.mark.parametrize("name", ROUTERS)
def test_numerics_are_not_mixed_unless_allowed(name: str) -> None:
    view = swarm(
        10,
        server("a", 0, 5),
        server("b", 5, 10, numerics=BFLOAT16),
        server("c", 5, 10, decode_ms_per_block=50.0),
    )
    network = known(view, {})
    router = router_named(name, COSTS, random.Random(0))
    assert chain_of(router.route(view, network, REQUEST)) == ("a", "c")
    mixing = router_named(name, replace(COSTS, mix_numerics=True), random.Random(0))
    assert chain_of(mixing.route(view, network, REQUEST)) == ("a", "b")
    avoiding = replace(REQUEST, avoid=frozenset({PeerId("server-c")}))
    with pytest.raises(MissingBlocksError):
        router_named(name, COSTS, random.Random(0)).route(view, network, avoiding)


def test_no_chain_is_longer_than_a_session_allows() -> None:
    short = [server(f"s{n}", n, n + 1, decode_ms_per_block=0.01) for n in range(40)]
    long = [server("x", 0, 20, decode_ms_per_block=40.0), server("y", 20, 40)]
    rtt = {one.peer: 0.0 for one in (*short, *long)}
    view = swarm(40, *short, *long)
    overhead = RouteCosts(overhead=HopOverhead(0.0, 0.0))
    route = LayerRouter(overhead).route(view, known(view, rtt), REQUEST)
    assert len(route.hops) <= MAX_HOPS
    with pytest.raises(SwarmError, match=str(MAX_HOPS)):
        LayerRouter(overhead).route(swarm(40, *short), known(view, rtt), REQUEST)


def test_an_unknown_router() -> None:
    with pytest.raises(UsageError, match="two-choices"):
        router_named("by-hand", COSTS, random.Random(0))


def test_a_changed_snapshot_is_read_anew() -> None:
    view = swarm(4, server("a", 0, 4), server("b", 0, 4, decode_ms_per_block=2.0))
    network = known(view, {})
    router = LayerRouter(COSTS)
    assert chain_of(router.route(view, network, REQUEST)) == ("a",)
    slower = replace(view, servers=(replace(view.servers[0], decode_ms_per_block=9.0),
                                    view.servers[1]))  # fmt: skip
    assert chain_of(router.route(slower, network, REQUEST)) == ("b",)
    moved = swarm(4, server("b", 0, 4), server("c", 0, 4, decode_ms_per_block=0.5))
    assert chain_of(router.route(moved, network, REQUEST)) == ("c",)
    gone = swarm(4, server("c", 0, 2))
    with pytest.raises(MissingBlocksError):
        router.route(gone, network, REQUEST)
    assert Span(2, 4) in gone.missing()


# ---- Parallax' known answers (turning points), with partial spans


def test_turning_points_are_where_the_router_cuts() -> None:
    slow_head = swarm(
        10,
        server("head", 0, 6, decode_ms_per_block=100.0),
        server("tail", 4, 10, decode_ms_per_block=0.1),
    )
    network = known(slow_head, {one.peer: 0.001 for one in slow_head.servers})
    route = LayerRouter(COSTS).route(slow_head, network, REQUEST)
    assert route.hops == (Hop("server-head", 0, 4), Hop("server-tail", 4, 10))
    solo = swarm(8, server("solo", 0, 8))
    assert len(LayerRouter(COSTS).route(solo, network, REQUEST).hops) == 1
    full = swarm(12, server("full", 0, 12), server("tail", 6, 12))
    assert chain_of(LayerRouter(COSTS).route(full, known(full, {}), REQUEST)) == ("full",)


def test_discovery_of_chains_that_must_meet() -> None:
    """h2[0,23) continues at m2[23,42) only with t2 or by a part of a span; all chains are used."""
    spans = {
        "h1": (0, 22), "h2": (0, 23), "m1": (22, 43), "m2": (23, 42),
        "m3": (23, 47), "t1": (43, 64), "t2": (47, 64),
    }  # fmt: skip
    view = swarm(64, *(server(name, *span) for name, span in spans.items()))
    for wanted in (("h1", "m1", "t1"), ("h2", "m3", "t2")):
        fast = replace(
            view,
            servers=tuple(
                replace(one, decode_ms_per_block=0.01)
                if one.peer.removeprefix("server-") in wanted
                else one
                for one in view.servers
            ),
        )
        assert chain_of(LayerRouter(COSTS).route(fast, known(fast, {}), REQUEST)) == wanted


# ---- faults of others


def test_a_block_costs_its_time_for_each_block_that_is_used() -> None:
    """Parallax' code adds a per-layer time once a node: a long slow stage then looks free."""
    view = swarm(
        20,
        server("long", 0, 20, decode_ms_per_block=5.0),
        server("first", 0, 10, decode_ms_per_block=2.0),
        server("second", 10, 20, decode_ms_per_block=2.0),
    )
    network = known(view, {one.peer: 0.001 for one in view.servers})
    route = LayerRouter(COSTS).route(view, network, REQUEST)
    assert chain_of(route) == ("first", "second")
    assert route.tpot_s == pytest.approx(20 * 0.002 + 3 * 0.0005 + 2 * 0.002)


@pytest.mark.parametrize("name", ["parallax", "two-choices"])
def test_load_is_time_and_it_is_subtracted(name: str) -> None:
    """Parallax' load term is at most 0.05 ms, and its counters never go down."""
    view = swarm(
        10,
        server("a", 0, 10, decode_ms_per_block=1.0, decode_row_ms_per_block=1.0),
        server("b", 0, 10, decode_ms_per_block=1.5, decode_row_ms_per_block=1.0),
    )
    network = known(view, {one.peer: 0.001 for one in view.servers})
    router: Router = router_named(name, COSTS, random.Random(0))
    route = router.route(view, network, REQUEST)
    assert chain_of(route) == ("a",)
    router.opened(session(1), route)
    again = router.route(view, network, REQUEST)
    assert chain_of(again) == ("b",)
    router.closed(session(1))
    assert chain_of(router.route(view, network, REQUEST)) == ("a",)
    # announced waits count as well, and what was announced anew is not counted twice
    router.opened(session(2), route)
    anew = replace(view, servers=(replace(view.servers[0], queue_wait_ms=1.0), view.servers[1]))
    assert chain_of(router.route(anew, network, REQUEST)) == ("a",)
    waiting = replace(view, servers=(replace(view.servers[0], queue_wait_ms=9.0), view.servers[1]))
    assert chain_of(router.route(waiting, network, REQUEST)) == ("b",)


def test_clients_with_equal_views_spread_over_equal_replicas() -> None:
    """With one and the same snapshot, 600 sessions of 60 clients."""
    replicas = [server(f"r{n}", 10, 20) for n in range(6)]
    view = swarm(20, server("head", 0, 10), *replicas)
    network = known(view, {one.peer: 0.05 for one in view.servers})
    taken: Counter[str] = Counter()
    for client in range(60):
        router = TwoChoicesRouter(COSTS, random.Random(client))
        for number in range(10):
            route = router.route(view, network, REQUEST)
            router.opened(session(number), route)
            taken[route.hops[1].peer] += 1
    assert len(taken) == len(replicas)
    assert max(taken.values()) <= 1.5 * sum(taken.values()) / len(replicas)


def test_round_trips_to_first_servers_are_used() -> None:
    """Petals overwrites the pings of first servers by those of later ones."""
    view = swarm(10, server("far", 0, 10), server("near", 0, 10))
    network = known(view, {PeerId("server-far"): 0.2, PeerId("server-near"): 0.01})
    for name in ROUTERS:
        router = router_named(name, COSTS, random.Random(1))
        assert chain_of(router.route(view, network, REQUEST)) == ("near",)
