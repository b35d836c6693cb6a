"""Routers over chains with room of their own: the fastest free one, and pipelines in turn."""

from dataclasses import replace

from possible_chains import COSTS, ME, REQUEST, chain_of, known, session
from routing_views import server, swarm

from swarm.routing.network import KnownNetwork
from swarm.routing.routers.pipelines import FastestFreeChainRouter, RoundRobinRouter
from swarm.routing.view import SwarmView
from swarm.spans import PeerId


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
