"""Routers: against exhaustive search, and the faults of others that ours must not share."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from routing_views import BFLOAT16, round_trips, server, swarm, views

from swarm.errors import MissingBlocksError, SwarmError, UsageError
from swarm.routing.coordinates import Coordinate
from swarm.routing.hop_graph import waits
from swarm.routing.network import KnownNetwork
from swarm.routing.performance import ChainMode, HopOverhead
from swarm.routing.policies import ROUTERS, router_named
from swarm.routing.router import Route, RouteCosts, Router, RouteRequest, cost_of
from swarm.routing.routers.layers import LayerRouter, TwoChoicesRouter
from swarm.routing.routers.petals import PetalsRouter
from swarm.routing.routers.pipelines import FastestFreeChainRouter, RoundRobinRouter
from swarm.routing.routers.waiting import ThresholdRouter, WaitingTimeRouter, petals_retries
from swarm.routing.view import CacheUnit, Release, ServerView, SwarmView
from swarm.sessions.messages import MAX_HOPS, Hop
from swarm.spans import PeerId, SessionId, Span

ME = PeerId("client")
REQUEST = RouteRequest(ME, 20, 30)
COSTS = RouteCosts()


def session(number: int) -> SessionId:
    return SessionId(number.to_bytes(16, "big"))


def known(view: SwarmView, rtt_s: dict[PeerId, float]) -> KnownNetwork:
    return KnownNetwork(ME, rtt_s)


def all_chains(
    view: SwarmView, *, to_the_end: bool, reached: int = 0, used: frozenset[str] = frozenset()
) -> Iterator[tuple[Hop, ...]]:
    """Every chain in which each server is one hop; `to_the_end`: of its span."""
    if reached == view.num_blocks:
        yield ()
        return
    for one in view.online():
        if one.peer in used or reached not in one.span:
            continue
        ends = [one.span.end] if to_the_end else range(reached + 1, one.span.end + 1)
        for end in ends:
            more = all_chains(view, to_the_end=to_the_end, reached=end, used=used | {one.peer})
            yield from ((Hop(one.peer, reached, end), *rest) for rest in more)


def servers_of(view: SwarmView, hops: tuple[Hop, ...]) -> list[ServerView]:
    by_peer = {one.peer: one for one in view.servers}
    return [by_peer[PeerId(hop.peer)] for hop in hops]


def request_s(
    view: SwarmView, hops: tuple[Hop, ...], network: KnownNetwork, costs: RouteCosts = COSTS
) -> float:
    cost = cost_of(hops, servers_of(view, hops), network, REQUEST, costs)
    return cost.ttft_s + (REQUEST.output_tokens - 1) * cost.tpot_s


def penalties(view: SwarmView, hops: tuple[Hop, ...]) -> float:
    found = 0.0
    for one in servers_of(view, hops):
        if one.cache_tokens_total < REQUEST.cache_tokens:
            found += 1000.0
        elif one.cache_tokens_free < REQUEST.cache_tokens:
            found += 10.0
    return found


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
    rng = random.Random(data.draw(st.integers(0, 5)))
    route = TwoChoicesRouter(COSTS, rng, near_equal=0.1).route(view, network, REQUEST)
    assert route.hops in list(all_chains(view, to_the_end=False))
    least = request_s(view, best.hops, network) + penalties(view, best.hops)
    found = request_s(view, route.hops, network) + penalties(view, route.hops)
    assert found <= least * 1.1 + 1e-9


@given(st.data())
def test_petals_router_finds_the_least_of_its_own_costs(data: st.DataObject) -> None:
    view = data.draw(views())
    network = known(view, data.draw(round_trips(view)))

    def petals_s(hops: tuple[Hop, ...]) -> float:
        total, before = 0.0, ME
        for hop, one in zip(hops, servers_of(view, hops), strict=True):
            total += network.one_way_s(before, one.peer) + 0.018
            total += (hop.end - hop.start) * (one.decode_ms_per_block or 10.0) / 1000
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


# ---- waiting for caches


def wait_s(view: SwarmView, hop: Hop, one: ServerView) -> float:
    """Sessions end one after the other until there is room."""
    needed = view.cache_needed(one, REQUEST.cache_tokens, hop.end - hop.start)
    free = one.cache_tokens_free
    if free >= needed:
        return 0.0
    for release in sorted(one.releases, key=lambda release: release.after_s):
        free += release.tokens
        if free >= needed:
            return release.after_s
    return math.inf


@st.composite
def busy_views(draw: st.DrawFn) -> SwarmView:
    """Servers whose caches are taken, and come back at various times."""
    view = draw(views())
    releases = st.lists(
        st.builds(
            Release,
            st.sampled_from([0.5, 2.0, 7.0, 40.0]),
            st.sampled_from([20, 60, 200]),
        ),
        max_size=4,
    )
    busy = [
        replace(
            one,
            cache_tokens_free=draw(st.sampled_from([0, 60, 1000])),
            releases=tuple(draw(releases)),
        )
        for one in view.servers
    ]
    return replace(view, servers=tuple(busy), cache_unit=draw(st.sampled_from(CacheUnit)))


@settings(max_examples=150)
@given(st.data())
def test_the_waiting_routers_against_all_chains(data: st.DataObject) -> None:
    view = data.draw(busy_views())
    network = known(view, data.draw(round_trips(view)))
    rounding = data.draw(st.sampled_from([petals_retries, lambda waited: waited]))
    summed: list[float] = []
    longest: list[float] = []
    for hops in all_chains(view, to_the_end=True):
        each = [
            wait_s(view, hop, one) for hop, one in zip(hops, servers_of(view, hops), strict=True)
        ]
        if max(each) < math.inf:
            cost = request_s(view, hops, network)
            summed.append(sum(each) + cost)
            longest.append(rounding(max(each)) + cost)
    ws_rr, exact = WaitingTimeRouter(COSTS, rounding), ThresholdRouter(COSTS, rounding)
    if not summed:
        for router in (ws_rr, exact):
            with pytest.raises(SwarmError):
                router.route(view, network, REQUEST)
        return
    route = exact.route(view, network, REQUEST)
    assert route.request_s(REQUEST.output_tokens) == pytest.approx(min(longest))
    other = ws_rr.route(view, network, REQUEST)
    each = [
        wait_s(view, hop, one)
        for hop, one in zip(other.hops, servers_of(view, other.hops), strict=True)
    ]
    assert other.wait_s == rounding(max(each))
    assert sum(each) + request_s(view, other.hops, network) == pytest.approx(min(summed))
    # The sum is an upper bound of what really comes (Corollary 1).
    assert max(each) + request_s(view, other.hops, network) <= min(summed) + 1e-9


@pytest.mark.parametrize(
    ("waited", "started"),
    [(0, 0), (0.1, 1), (1, 1), (1.5, 3), (3, 3), (6, 7), (16, 31), (60, 63), (64, 123), (124, 183)],
)
def test_petals_clients_ask_again_ever_more_rarely(waited: float, started: float) -> None:
    assert petals_retries(waited) == started


def test_waits_are_of_the_sessions_that_end_first() -> None:
    table = waits([3], [[(9.0, 2), (4.0, 1)]], [[0, 2, 4, 6, 8]])
    assert table.tolist() == [[0.0, 0.0, 4.0, 9.0, math.inf]]


# ---- chains with room of their own


def chain_of(route: Route | None) -> tuple[str, ...]:
    assert route is not None
    return tuple(hop.peer.removeprefix("server-") for hop in route.hops)


def two_chains() -> SwarmView:
    """A fast one for two sessions, and a slow one for one."""
    return swarm(
        10,
        server("a", 0, 5, cache_tokens_total=100, cache_tokens_free=100),
        server("b", 5, 10, cache_tokens_total=140, cache_tokens_free=140),
        server("c", 0, 10, decode_ms_per_block=9.0, cache_tokens_total=60, cache_tokens_free=60),
    )


def test_the_fastest_free_chain_then_a_queue() -> None:
    view = two_chains()
    network = known(view, {one.peer: 0.002 for one in view.servers})
    router = FastestFreeChainRouter(COSTS)
    taken = []
    for number in range(3):
        route = router.route(view, network, REQUEST)
        assert route is not None
        taken.append(chain_of(route))
        router.opened(session(number), route)
    assert taken == [("a", "b"), ("a", "b"), ("c",)]
    assert router.route(view, network, REQUEST) is None
    router.closed(session(1))
    assert chain_of(router.route(view, network, REQUEST)) == ("a", "b")
    router.closed(session(7))


def test_round_robin_over_disjoint_pipelines() -> None:
    view = swarm(12, server("a", 0, 6), server("b", 6, 12), server("c", 0, 4), server("d", 4, 12))
    network = known(view, {})
    router = RoundRobinRouter(COSTS)
    chains = [chain_of(router.route(view, network, REQUEST)) for _ in range(4)]
    assert set(chains) == {("a", "b"), ("c", "d")}
    assert chains[:2] == chains[2:]
    # a server of one pipeline leaves: the next requests see it
    gone = replace(view, servers=view.servers[1:])
    assert {chain_of(router.route(gone, network, REQUEST)) for _ in range(3)} == {("c", "d")}
    # what is left over makes a chain with a part of a span
    odd = swarm(12, server("a", 0, 7), server("b", 5, 12))
    assert chain_of(RoundRobinRouter(COSTS).route(odd, known(odd, {}), REQUEST)) == ("a", "b")


def test_parallax_diversity_case() -> None:
    """L = 3: h1 1.2, h2 1.0, m1 1.0, m2 3.0, t1 1.0 ms a layer, no delays: one pipeline."""
    view = swarm(
        3,
        server("h1", 0, 1, decode_ms_per_block=1.2),
        server("h2", 0, 1, decode_ms_per_block=1.0),
        server("m1", 1, 2, decode_ms_per_block=1.0),
        server("m2", 1, 2, decode_ms_per_block=3.0),
        server("t1", 2, 3, decode_ms_per_block=1.0),
    )
    network = known(view, {one.peer: 0.0 for one in view.servers})
    router = RoundRobinRouter(COSTS)
    assert {chain_of(router.route(view, network, REQUEST)) for _ in range(3)} == {
        ("h2", "m1", "t1")
    }
    more = replace(view, servers=(*view.servers, server("t2", 2, 3)))
    rtt = KnownNetwork(
        ME,
        {one.peer: 0.0 for one in more.servers},
        next_hops_s={(PeerId("server-m2"), PeerId("server-t2")): 0.004},
    )
    router = RoundRobinRouter(COSTS)
    found = [chain_of(router.route(more, rtt, REQUEST)) for _ in range(2)]
    assert found[0][:2] == ("h2", "m1")
    assert found[1][:2] == ("h1", "m2")
    assert not set(found[0]) & set(found[1])


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


# ---- all of them


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
