"""What a decision costs in large swarms, and how it grows.

    python benchmarks/routing.py

Spans of 4 to 20 of 80 blocks, log-normal round trips and coordinates, every tenth server measured
by the client. Cold: the first route over a snapshot. Warm: the next one, of whose snapshot 1 % has
changed. The pruned router's chains are compared with the exact ones where those take seconds at
most. One thread; medians of wall and of processor time.
"""

import argparse
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from swarm.routing.coordinates import Coordinate
from swarm.routing.coverage import place_server
from swarm.routing.network import KnownNetwork
from swarm.routing.router import RouteCosts, RouteRequest
from swarm.routing.routers.layers import LayerRouter, TwoChoicesRouter
from swarm.routing.view import Numerics, ServerState, ServerView, SwarmView
from swarm.spans import PeerId, Span

BLOCKS = 80
ME = PeerId("client")
REQUEST = RouteRequest(ME, 200, 200)
COSTS = RouteCosts(activation_bytes=16384)
LIMITS_MS = {
    1000: {"cold": 15.0, "warm": 5.0, "join": 50.0},
    10_000: {"cold": 150.0, "warm": 20.0},
}


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


@dataclass(frozen=True)
class Taken:
    """Milliseconds."""

    wall: float
    processor: float

    def __str__(self) -> str:
        return f"{self.wall:7.1f} {self.processor:7.1f}"


def taken(act: Callable[..., object], *arguments: object) -> Taken:
    wall, processor = time.perf_counter(), time.process_time()
    act(*arguments)
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    return Taken(1e3 * wall, 1e3 * processor)


def medians(values: Sequence[Taken]) -> Taken:
    return Taken(
        statistics.median(one.wall for one in values),
        statistics.median(one.processor for one in values),
    )


def measure(count: int, repetitions: int) -> tuple[Taken, Taken]:
    """A cold and a warm route."""
    cold, warm = [], []
    for repetition in range(repetitions):
        view, network = swarm(count, repetition)
        rng = random.Random(repetition)
        router = TwoChoicesRouter(COSTS, rng)
        cold.append(taken(router.route, view, network, REQUEST))
        for _ in range(10):
            view = changed(view, rng)
            warm.append(taken(router.route, view, network, REQUEST))
    return medians(cold), medians(warm)


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
    measure(300, 1)  # so that no library is still to be imported
    print("milliseconds, wall and processor")
    print(f"{'servers':>8} {'cold':>15} {'warm':>15} {'join':>15}")
    found: dict[int, dict[str, Taken]] = {}
    for count in counts:
        cold, warm = measure(count, options.repetitions)
        view, _ = swarm(count, 0)
        numerics = view.servers[0].numerics
        join = medians([taken(place_server, view, 12, 1.0, numerics) for _ in range(5)])
        found[count] = {"cold": cold, "warm": warm, "join": join}
        print(f"{count:8} {cold} {warm} {join}", flush=True)
    for name in ("cold", "warm", "join"):
        grows = exponent(counts, [found[count][name].wall for count in counts])
        print(f"{name}: time ~ servers ^ {grows:.2f}")
    for count, limits in LIMITS_MS.items():
        for name, limit in limits.items():
            wall = found[count][name].wall
            print(
                f"{count} servers, {name}: {wall / limit:.2f} of the limit of {limit:g} ms"
                f"{'' if wall <= limit else ' (MISSED)'}"
            )
    losses = loss(1000, 8)
    print(
        f"pruned against exact over 1000 servers: median {100 * statistics.median(losses):.2f} % "
        f"worse, at most {100 * max(losses):.2f} % (limit 2 %)"
    )


if __name__ == "__main__":
    main()
