"""Networks and arrivals for the papers' experiments: generators fitted to published statistics.

The papers use topologies and traces of others. None of these is in this repository; what is made
here has the same number of nodes and links, the same mean round trip, the same rates. A topology
file in the format of Repetita (NODES, EDGES with delays in microseconds) can be read instead.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from scipy.spatial.distance import cdist

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TopologyStatistics:
    """Of a topology of the Internet Topology Zoo, as Sun et al. (arXiv 2512.21884) use it."""

    name: str
    file: str
    """In Repetita's collection."""
    nodes: int
    links: int
    """Directed."""
    mean_rtt_s: float
    """Over all pairs, along shortest paths."""


TOPOLOGIES = (
    TopologyStatistics("AboveNet", "Abvt.graph", 23, 62, 0.0171),
    TopologyStatistics("BellCanada", "Bellcanada.graph", 48, 130, 0.0094),
    TopologyStatistics("GTS-CE", "GtsCe.graph", 149, 386, 0.0041),
)


def generated_rtt_s(statistics: TopologyStatistics, rng: np.random.Generator) -> Floats:
    """`[nodes, nodes]`: a random geometric graph with as many links, the same mean round trip."""
    points = rng.random((statistics.nodes, 2))
    apart = cdist(points, points)
    tree = minimum_spanning_tree(apart).toarray()
    linked = (tree + tree.T) > 0
    pairs = np.argwhere(np.triu(~linked, 1))
    nearest = pairs[np.argsort(apart[pairs[:, 0], pairs[:, 1]])]
    for one, other in nearest[: max(0, statistics.links // 2 - linked.sum() // 2)]:
        linked[one, other] = linked[other, one] = True
    rtt = shortest_path(np.where(linked, apart, 0.0))
    upper = rtt[np.triu_indices(statistics.nodes, 1)]
    scaled: Floats = rtt * (statistics.mean_rtt_s / upper.mean())
    return scaled


def read_rtt_s(path: Path) -> Floats:
    """`[nodes, nodes]`: twice the shortest delays of a topology file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    nodes = int(lines[0].split()[1])
    begin = next(number for number, line in enumerate(lines) if line.startswith("EDGES"))
    edges = [line.split() for line in lines[begin + 2 :] if line.strip()]
    rows, columns = ([int(edge[at]) for edge in edges] for at in (1, 2))
    delays = [max(1.0, float(edge[5])) * 1e-6 for edge in edges]
    graph = coo_matrix((delays, (rows, columns)), shape=(nodes, nodes))
    rtt: Floats = 2 * shortest_path(graph.tocsr())
    return rtt


def poisson_arrivals_s(count: int, rate_per_s: float, rng: np.random.Generator) -> list[float]:
    """The first at 0."""
    gaps = rng.exponential(1 / rate_per_s, count)
    gaps[0] = 0.0
    return [float(at) for at in np.cumsum(gaps)]


def bursty_arrivals_s(count: int, rate_per_s: float, rng: np.random.Generator) -> list[float]:
    """A Poisson process whose rate is drawn anew every 10 s from a gamma distribution.

    Its index of dispersion over 10 s is 71 at 2.57 requests/s, as in the Azure trace of code
    requests (2023) that the successor's experiments replay.
    """
    window_s, dispersion = 10.0, 71.0
    mean = rate_per_s * window_s
    times: list[float] = []
    at = 0.0
    while len(times) < count:
        expected = rng.gamma(mean / (dispersion - 1), dispersion - 1)
        inside = np.sort(rng.random(rng.poisson(expected))) * window_s + at
        times.extend(float(value) for value in inside)
        at += window_s
    first = times[0]
    return [value - first for value in times[:count]]


def wide_area_rtt_s(
    nodes: int, rng: np.random.Generator, *, median_s: float = 0.0282, spread: float = 0.28
) -> Floats:
    """`[nodes, nodes]`: each node's log-normal characteristic round trip; a pair has the mean.

    The defaults fit the medians of 320 RIPE Atlas anchors in Europe (5 % 18.7 ms, median 28.2 ms,
    95 % 46.0 ms).
    """
    own = median_s * np.exp(rng.normal(0, spread, nodes))
    rtt: Floats = (own[:, None] + own[None, :]) / 2
    np.fill_diagonal(rtt, 0.0)
    return rtt
