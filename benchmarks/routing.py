"""What a decision costs in large swarms, and how it grows.

    python benchmarks/routing.py

Spans of 4 to 20 of 80 blocks, log-normal round trips and coordinates, every tenth server measured
by the client. Cold: the first route over a snapshot. Warm: the next one, of whose snapshot 1 % has
changed. The pruned router's chains are compared with the exact ones where those take seconds at
most. One thread; medians.
"""

import argparse
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from swarm.routing.coordinates import Coordinate
from swarm.routing.network import KnownNetwork
from swarm.routing.placement import least_covered
from swarm.routing.router import RouteCosts, RouteRequest
from swarm.routing.routers.layers import LayerRouter, TwoChoicesRouter
from swarm.routing.view import Numerics, ServerState, ServerView, SwarmView
from swarm.spans import PeerId, Span

BLOCKS = 80
ME = PeerId("client")
REQUEST = RouteRequest(ME, 200, 200)
COSTS = RouteCosts(activation_bytes=16384)
LIMITS_MS = {1000: (15.0, 5.0), 10_000: (150.0, 20.0)}
"""Cold and warm."""
JOIN_LIMIT_MS = 50.0


def server(number: int, rng: random.Random) -> ServerView:
    size = rng.randint(4, 20)
    start = rng.randint(0, BLOCKS - size)
    return ServerView(
        peer=PeerId(f"server-{number}"),
        span=Span(start, start + size),
        state=ServerState.ONLINE,
        checkpoint="of-the-benchmark",
        numerics=Numerics("bfloat16"),
        decode_ms_per_block=rng.choice([0.5, 1.0, 2.0, 5.0, 10.0]),
        prefill_tokens_per_s=rng.choice([200.0, 1000.0, 5000.0]),
        cache_tokens_free=100_000,
        cache_tokens_total=100_000,
        queue_wait_ms=rng.choice([0.0, 0.0, 1.0, 5.0, 20.0]),
    )


def swarm(count: int, seed: int) -> tuple[SwarmView, KnownNetwork]:
    rng = random.Random(seed)
    servers = tuple(server(number, rng) for number in range(count))
    places = {one.peer: coordinate(rng) for one in servers}
    places[ME] = coordinate(rng)
    measured = rng.sample([one.peer for one in servers], count // 10)
    rtt_s = {peer: places[peer].rtt_s(places[ME]) * rng.uniform(0.9, 1.3) for peer in measured}
    rates = {one.peer: rng.choice([2e6, 12e6, 60e6]) for one in servers}
    network = KnownNetwork(ME, rtt_s, coordinates=places, bytes_per_s=rates)
    return SwarmView("of-the-benchmark", BLOCKS, servers), network


def coordinate(rng: random.Random) -> Coordinate:
    position = tuple(rng.gauss(0, 0.04) for _ in range(3))
    return Coordinate(position, rng.lognormvariate(math.log(0.008), 0.8))


def changed(view: SwarmView, rng: random.Random) -> SwarmView:
    """The next snapshot: 1 % of the servers announce another speed and wait."""
    servers = list(view.servers)
    for number in rng.sample(range(len(servers)), max(1, len(servers) // 100)):
        servers[number] = replace(
            servers[number],
            queue_wait_ms=rng.choice([0.0, 2.0, 9.0]),
            decode_ms_per_block=rng.choice([0.5, 1.0, 2.0, 5.0, 10.0]),
        )
    return replace(view, servers=tuple(servers))


def milliseconds(act: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    act(*arguments)
    return 1e3 * (time.perf_counter() - began)


def measure(count: int, repetitions: int) -> tuple[float, float]:
    """Medians of a cold and of a warm route."""
    cold, warm = [], []
    for repetition in range(repetitions):
        view, network = swarm(count, repetition)
        rng = random.Random(repetition)
        router = TwoChoicesRouter(COSTS, rng)
        cold.append(milliseconds(router.route, view, network, REQUEST))
        for _ in range(10):
            view = changed(view, rng)
            warm.append(milliseconds(router.route, view, network, REQUEST))
    return statistics.median(cold), statistics.median(warm)


def loss(count: int, seeds: int) -> list[float]:
    """By how much the pruned chain is worse than the exact one."""
    found = []
    for seed in range(seeds):
        view, network = swarm(count, 1000 + seed)
        exact = LayerRouter(COSTS, width=None).route(view, network, REQUEST)
        pruned = LayerRouter(COSTS).route(view, network, REQUEST)
        tokens = REQUEST.output_tokens
        found.append(pruned.request_s(tokens) / exact.request_s(tokens) - 1)
    return found


def exponent(counts: list[int], values: list[float]) -> float:
    """Of `time ~ servers ^ exponent`, by least squares."""
    return float(np.polyfit(np.log(counts), np.log(values), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    counts = [500, 1000, 2000, 5000, 10_000]
    print(f"{'servers':>8} {'cold ms':>8} {'warm ms':>8} {'join ms':>8}")
    cold, warm, join = [], [], []
    for count in counts:
        one, other = measure(count, options.repetitions)
        view, _ = swarm(count, 0)
        placed = [milliseconds(least_covered, view, BLOCKS, 12) for _ in range(5)]
        cold.append(one)
        warm.append(other)
        join.append(statistics.median(placed))
        print(f"{count:8} {one:8.1f} {other:8.1f} {join[-1]:8.1f}")
    for name, values in (("cold", cold), ("warm", warm), ("join", join)):
        print(f"{name}: time ~ servers ^ {exponent(counts, values):.2f}")
    for count, (cold_limit, warm_limit) in LIMITS_MS.items():
        at = counts.index(count)
        print(
            f"{count} servers: cold {cold[at] / cold_limit:.2f} of the limit of {cold_limit:g} ms, "
            f"warm {warm[at] / warm_limit:.2f} of {warm_limit:g} ms"
        )
    print(
        f"joining 1000 servers: {join[1] / JOIN_LIMIT_MS:.2f} of the limit of {JOIN_LIMIT_MS:g} ms"
    )
    losses = loss(1000, 8)
    print(
        f"pruned against exact over 1000 servers: median {100 * statistics.median(losses):.2f} % "
        f"worse, at most {100 * max(losses):.2f} % (limit 2 %)"
    )


if __name__ == "__main__":
    main()
