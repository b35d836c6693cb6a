"""Delays that are known and guessed, coordinates, and decisions over a thousand servers."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_views import server, swarm

from swarm.errors import UsageError
from swarm.routing.coordinates import Coordinate, Vivaldi
from swarm.routing.network import KnownNetwork, MatrixNetwork
from swarm.routing.router import RouteCosts, RouteRequest
from swarm.routing.routers.layers import LayerRouter
from swarm.routing.view import SwarmView
from swarm.spans import PeerId

ME = PeerId("client")
A, B, C = (PeerId(name) for name in "abc")


def test_what_is_measured_comes_before_what_is_guessed() -> None:
    places = {A: Coordinate((0.0, 0.0, 0.0), 0.01), B: Coordinate((0.03, 0.04, 0.0), 0.02)}
    network = KnownNetwork(
        ME, {A: 0.1, C: 0.3}, next_hops_s={(B, A): 0.5}, coordinates=places, default_rtt_s=0.2
    )
    assert network.one_way_s(ME, A) == network.one_way_s(A, ME) == 0.05
    assert network.one_way_s(ME, B) == 0.1  # never measured
    assert network.one_way_s(A, B) == network.one_way_s(B, A) == 0.25
    assert network.one_way_s(A, C) == 0.15  # no coordinate: the larger of both delays to me
    assert network.one_way_s(A, A) == 0.0
    # who tells the other's measurement smaller is not believed
    both = KnownNetwork(ME, {}, next_hops_s={(A, B): 0.001, (B, A): 0.4, (C, A): 0.2})
    assert both.one_way_s(A, B) == both.one_way_s(B, A) == 0.2
    assert both.one_way_s(A, C) == 0.1
    unmeasured = KnownNetwork(ME, {}, coordinates=places)
    assert unmeasured.one_way_s(A, B) == pytest.approx((0.05 + 0.03) / 2)
    # by my own coordinate, when I have one
    placed = KnownNetwork(ME, {}, coordinates={**places, ME: Coordinate((0.0, 0.0, 0.03), 0.0)})
    assert placed.one_way_s(ME, A) == pytest.approx((0.03 + 0.01) / 2)


@given(st.data())
def test_links_say_what_the_network_says(data: st.DataObject) -> None:
    peers = [PeerId(f"p{number}") for number in range(6)]
    rtt = st.sampled_from([0.01, 0.05, 0.3])
    pairs = st.sampled_from(list(itertools.combinations([*peers, ME], 2)))
    places = st.builds(Coordinate, st.tuples(rtt, rtt, rtt), st.sampled_from([0.0, 0.02]))
    some = st.sampled_from([*peers, ME])
    network = KnownNetwork(
        ME,
        data.draw(st.dictionaries(st.sampled_from(peers), rtt)),
        next_hops_s=data.draw(st.dictionaries(pairs, rtt)),
        coordinates=data.draw(
            st.one_of(st.dictionaries(some, places), st.just(dict.fromkeys(peers, Coordinate())))
        ),
        bytes_per_s=data.draw(st.dictionaries(some, st.sampled_from([0.0, 1e6]))),
    )
    links = network.links(peers)
    rows, columns = np.array([0, 2, 5]), np.array([1, 3, 4])
    found = links.between_s(rows, columns)
    for row, column in itertools.product(range(3), range(3)):
        expected = network.one_way_s(peers[rows[row]], peers[columns[column]])
        assert found[row, column] == pytest.approx(expected, abs=1e-7)
    for peer in (ME, peers[3]):
        expected = [network.one_way_s(peer, other) for other in peers]
        assert links.from_peer_s(peer).tolist() == pytest.approx(expected)
    assert links.seconds_per_byte.tolist() == [network.seconds_per_byte(peer) for peer in peers]


def test_a_matrix_is_checked() -> None:
    with pytest.raises(UsageError, match="negative"):
        MatrixNetwork([A, B], np.array([[0.0, -1.0], [1.0, 0.0]]))
    with pytest.raises(UsageError, match="shape"):
        MatrixNetwork([A], np.zeros((2, 2)))
    with pytest.raises(UsageError, match="twice"):
        MatrixNetwork([A, A], np.zeros((2, 2)))
    network = MatrixNetwork([A, B], np.array([[9.0, 0.1], [0.2, 9.0]]), {A: 1e6})
    assert network.one_way_s(A, B) == 0.1
    assert network.one_way_s(A, A) == 0.0
    assert network.links([B, A]).from_peer_s(A).tolist() == [0.1, 0.0]
    assert network.seconds_per_byte(A) == 1e-6
    with pytest.raises(UsageError, match="no delays are known for c"):
        network.one_way_s(A, C)


# ---- coordinates


def median_error(true_rtt_s: np.ndarray, *, noise: float, seed: int) -> float:
    """Of all pairs, after every peer measured ten others forty times."""
    rng = random.Random(seed)
    peers = [Vivaldi(random.Random(seed + number)) for number in range(len(true_rtt_s))]
    neighbours = [rng.sample([n for n in range(len(peers)) if n != one], 10)
                  for one in range(len(peers))]  # fmt: skip
    for _ in range(40):
        for one, vivaldi in enumerate(peers):
            for other in neighbours[one]:
                queueing = rng.expovariate(1 / noise) if noise else 0.0
                sample = true_rtt_s[one, other] * (1 + queueing)
                vivaldi.observe(str(other), sample, peers[other].coordinate)
    errors = [
        abs(peers[one].coordinate.rtt_s(peers[other].coordinate) / true_rtt_s[one, other] - 1)
        for one, other in itertools.combinations(range(len(peers)), 2)
    ]
    return statistics.median(errors)


def euclidean(count: int, seed: int) -> np.ndarray:
    """Round trips of places in a plane with uplinks of 2 to 30 ms."""
    rng = np.random.default_rng(seed)
    place = rng.normal(0, 0.05, (count, 2))
    uplink = rng.uniform(0.002, 0.03, count)
    apart = np.sqrt(((place[:, None] - place[None, :]) ** 2).sum(axis=2))
    return apart + uplink[:, None] + uplink[None, :]


def test_coordinates_predict_pairs_that_never_measured_each_other() -> None:
    true = euclidean(40, 1)
    assert median_error(true, noise=0.0, seed=1) < 0.10
    # queues add to samples, and only add
    assert median_error(true, noise=0.3, seed=2) < 0.20


def test_guessing_without_coordinates_is_worse() -> None:
    true = euclidean(40, 3)
    known = KnownNetwork(ME, {PeerId(str(n)): float(true[0, n]) for n in range(1, 40)})
    errors = [
        abs(2 * known.one_way_s(PeerId(str(a)), PeerId(str(b))) / true[a, b] - 1)
        for a, b in itertools.combinations(range(1, 40), 2)
    ]
    assert median_error(true, noise=0.0, seed=3) < statistics.median(errors) / 2


@given(
    st.lists(st.tuples(st.floats(allow_nan=True), st.integers(0, 2)), max_size=20),
    st.integers(0, 3),
)
def test_lies_do_not_break_a_coordinate(samples: list[tuple[float, int]], seed: int) -> None:
    others = [
        Coordinate((1e6, -1e6, 0.0), 1e5, 0.0),
        Coordinate((0.0, 0.0), 0.01, 0.5),
        Coordinate(),
    ]
    mine = Vivaldi(random.Random(seed))
    for rtt_s, other in samples:
        found = mine.observe("x", rtt_s, others[other])
        assert all(map(math.isfinite, (*found.position_s, found.height_s, found.error)))
        assert found.height_s > 0
    mine.forget("x")


def test_a_coordinate_is_a_place() -> None:
    for values in ({"height_s": -1.0}, {"position_s": (math.nan,)}, {"error": 9.0}):
        with pytest.raises(UsageError):
            Coordinate(**values)  # type: ignore[arg-type]


# ---- large swarms


def large(count: int, seed: int) -> tuple[SwarmView, KnownNetwork]:
    rng = random.Random(seed)
    servers, places = [], {}
    for number in range(count):
        size = rng.randint(4, 20)
        start = rng.randint(0, 80 - size)
        speed = {
            "decode_ms_per_block": rng.choice([0.5, 1.0, 2.0, 5.0, 10.0]),
            "queue_wait_ms": rng.choice([0.0, 0.0, 1.0, 20.0]),
            "prefill_tokens_per_s": rng.choice([200.0, 5000.0]),
        }
        servers.append(server(str(number), start, start + size, **speed))
        position = tuple(rng.gauss(0, 0.04) for _ in range(3))
        places[servers[-1].peer] = Coordinate(position, rng.lognormvariate(-5, 0.8))
    places[ME] = Coordinate((0.01, 0.0, 0.0), 0.004)
    rtt_s = {
        one.peer: places[ME].rtt_s(places[one.peer]) * rng.uniform(0.9, 1.3)
        for one in rng.sample(servers, count // 10)
    }
    return swarm(80, *servers), KnownNetwork(ME, rtt_s, coordinates=places)


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.matrix),
                                  pytest.param(3, marks=pytest.mark.matrix)])  # fmt: skip
def test_pruned_decisions_are_nearly_the_best(seed: int) -> None:
    view, network = large(1000, seed)
    for request in (RouteRequest(ME, 200, 200), RouteRequest(ME, 0, 1)):
        pruned = LayerRouter(RouteCosts()).route(view, network, request)
        exact = LayerRouter(RouteCosts(), width=None).route(view, network, request)
        least = exact.request_s(request.output_tokens)
        assert least <= pruned.request_s(request.output_tokens) * (1 + 1e-9)
        assert pruned.request_s(request.output_tokens) <= 1.02 * least
