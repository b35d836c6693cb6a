"""What a chain of two costs, computed by hand."""

from dataclasses import replace

import pytest
from routing_views import server

from swarm.routing.network import KnownNetwork
from swarm.routing.performance import ChainMode, HopOverhead
from swarm.routing.router import RouteCosts, RouteRequest, cost_of
from swarm.sessions.messages import Hop
from swarm.spans import PeerId

ME = PeerId("client")
FIRST = server("a", 0, 10, decode_ms_per_block=2.0, prefill_tokens_per_s=1000.0, queue_wait_ms=3.0)
LAST = server("b", 8, 16, decode_ms_per_block=1.0, prefill_tokens_per_s=500.0, decode_fixed_ms=4.0)
HOPS = (Hop(FIRST.peer, 0, 10), Hop(LAST.peer, 10, 16))
NETWORK = KnownNetwork(
    ME,
    {FIRST.peer: 0.04, LAST.peer: 0.06},
    next_hops_s={(FIRST.peer, LAST.peer): 0.02},
    bytes_per_s={FIRST.peer: 1e6},
)
REQUEST = RouteRequest(ME, 100, 50)
COSTS = RouteCosts(overhead=HopOverhead(0.005, 0.007, 0.0001), activation_bytes=1000.0)


def test_a_push_chain_is_a_ring_of_one_way_delays() -> None:
    cost = cost_of(HOPS, (FIRST, LAST), NETWORK, REQUEST, COSTS)
    ways, bytes_ = 0.02 + 0.01 + 0.03, 0.001
    fixed = 0.003 + 0.004
    assert cost.tpot_s == pytest.approx(ways + 2 * bytes_ + fixed + 2 * 0.005 + 0.020 + 0.006)
    # of LAST's prompt time only the blocks that are used: 6 of 8
    prompt = 100 / 1000 + 100 / 500 * 6 / 8
    overhead = 2 * (0.007 + 100 * 0.0001)
    assert cost.ttft_s == pytest.approx(ways + 2 * 100 * bytes_ + fixed + overhead + prompt)


def test_a_relay_chain_is_a_round_trip_with_every_server() -> None:
    relay = replace(COSTS, mode=ChainMode.RELAY)
    cost = cost_of(HOPS, (FIRST, LAST), NETWORK, REQUEST, relay)
    ways = 0.04 + 0.06
    assert cost.tpot_s == pytest.approx(ways + 2 * 0.001 + 0.007 + 2 * 0.005 + 0.020 + 0.006)
