"""Parallax' phase 2 (arXiv 2509.26182) by the known answers of its own tests."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from inventories import GPT_OSS_120B
from routing_views import server, swarm

from swarm.routing.chains import disjoint_chains
from swarm.routing.hop_graph import HopCosts
from swarm.routing.model_shape import shape_of
from swarm.routing.network import KnownNetwork
from swarm.routing.performance import HopOverhead
from swarm.routing.router import RouteCosts, RouteRequest
from swarm.routing.routers.layers import LayerRouter
from swarm.routing.server_index import ServerIndex
from swarm.sessions.messages import Hop
from swarm.spans import PeerId

GPT_OSS = shape_of(GPT_OSS_120B)
EMBEDDING_BYTES = 1_158_266_880
ME = PeerId("client")
COSTS = RouteCosts(overhead=HopOverhead(0.0, 0.0))
Segment = tuple[str, int, int, float, float]
"""Name, first and last layer, GB/s of its memory, and where it stands."""


def layer_ms(segment: Segment, layers: int) -> float:
    """Of a machine without experts and cache, which reads embedding and head with its layers."""
    _, start, end, gb_per_s, _ = segment
    ends = (start == 0) + (end == layers)
    read = GPT_OSS.attention_parameters + ends * EMBEDDING_BYTES / (end - start)
    return 1e3 * read / (gb_per_s * 1e9)


def rtt_s(segments: Sequence[Segment]) -> Mapping[tuple[PeerId, PeerId], float]:
    """10 to 200 ms by how far two stand apart. A hop costs all of it there, here a half."""
    apart = {(a[0], b[0]): abs(a[4] - b[4]) for a in segments for b in segments if a[0] < b[0]}
    most = max(apart.values(), default=1.0)
    return {
        (PeerId(f"server-{a}"), PeerId(f"server-{b}")): 2 * (0.01 + 0.19 * each / most)
        for (a, b), each in apart.items()
    }


@pytest.mark.parametrize(
    ("layers", "segments", "cuts", "expected_ms"),
    [
        (10, [("head", 0, 6, 1.0, 0.0), ("tail", 4, 10, 3000.0, 0.01)], [4], 1078.785),
        (
            12,
            [("head", 0, 6, 500.0, 0.0), ("mid", 2, 8, 1.0, 0.5), ("end", 7, 12, 500.0, 0.6)],
            [6, 7],
            241.759,
        ),
        (8, [("solo", 0, 8, 250.0, 0.0)], [], 10.115),
    ],
)
def test_turning_points_and_their_costs(
    layers: int, segments: list[Segment], cuts: list[int], expected_ms: float
) -> None:
    view = swarm(
        layers, *(server(one[0], one[1], one[2], decode_ms_per_block=layer_ms(one, layers))
                  for one in segments)
    )  # fmt: skip
    network = KnownNetwork(ME, {one.peer: 0.0 for one in view.servers}, next_hops_s=rtt_s(segments))
    route = LayerRouter(COSTS).route(view, network, RouteRequest(ME, 1, 100))
    expected = tuple(
        Hop(one.peer, start, end)
        for one, (start, end) in zip(view.servers, pairwise([0, *cuts, layers]), strict=True)
    )
    assert route.hops == expected
    assert 1e3 * route.tpot_s == pytest.approx(expected_ms, abs=5e-4)


def test_a_chain_costs_its_layers_and_its_ways() -> None:
    """n1 [0,7), n2 [7,12), and a, b, c in a row: other than there, a layer's time counts for each
    layer."""
    two = swarm(
        12,
        server("n1", 0, 7, decode_ms_per_block=2.0),
        server("n2", 7, 12, decode_ms_per_block=3.0),
    )
    pair = (PeerId("server-n1"), PeerId("server-n2"))
    network = KnownNetwork(ME, dict.fromkeys(pair, 0.0), next_hops_s={pair: 0.4})
    route = LayerRouter(COSTS).route(two, network, RouteRequest(ME, 1, 100))
    assert [hop.peer for hop in route.hops] == list(pair)
    assert route.tpot_s == pytest.approx(7 * 0.002 + 0.2 + 5 * 0.003)
    three = swarm(15, *(server(name, 5 * n, 5 * n + 5) for n, name in enumerate("abc")))
    route = LayerRouter(COSTS).route(three, KnownNetwork(ME, {}), RouteRequest(ME, 1, 100))
    assert [hop.peer for hop in route.hops] == ["server-a", "server-b", "server-c"]


def test_all_of_24_machines_are_in_six_pipelines() -> None:
    groups = [
        (6, 0, 9), (5, 9, 18), (1, 9, 19), (5, 18, 27), (1, 19, 28), (5, 27, 36), (1, 28, 36),
    ]  # fmt: skip
    view = swarm(
        36,
        *(
            server(f"{start}-{end}-{number}", start, end, decode_ms_per_block=10.0)
            for count, start, end in groups
            for number in range(count)
        ),
    )
    found = ServerIndex(COSTS).candidates(
        view, KnownNetwork(ME, {}, default_rtt_s=0.0), RouteRequest(ME, 1, 100)
    )
    chains = disjoint_chains(HopCosts.of(found))
    assert len(chains) == 6
    assert sorted(part.server for chain in chains for part in chain.parts) == list(range(24))
