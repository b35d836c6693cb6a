"""The LLaMA-2-7B experiment of Sun, He, Hou (arXiv 2604.14993): nine slices of A100s.

    python benchmarks/successor.py

Three 3g.40gb and six 2g.20gb slices, 1,000 requests at 2.57 a second with 2,048 tokens in and 28
out on average. Their testbed replays the Azure trace of code requests (2023) and European round
trips of RIPE Atlas; here both are generated from their statistics. Their figures are measured on
real hardware, ours are of the booking model with their parameters: compare the order and the
ratios, not the seconds. Beside them stands what no policy can do better (`response_bound.py`).

Two lengths of requests: all of mean length, and log-normal as in the trace (sigma 0.85). Two kinds
of arrivals: Poisson, and bursts like the trace's (index of dispersion 71 over 10 s).
"""

import argparse
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from booking import Arrival, Booking, Outcome
from networks import bursty_arrivals_s, poisson_arrivals_s, wide_area_rtt_s
from response_bound import Way, least_mean_response_s

from swarm.routing.inventory import HostedModel, Inventory, Machine, Workload, tables
from swarm.routing.layout import Layout
from swarm.routing.network import MatrixNetwork
from swarm.routing.performance import ChainMode, HopOverhead, ServerSpeed
from swarm.routing.placements.best import BestPlacement
from swarm.routing.placements.chains import ChainsPlacement
from swarm.routing.placements.conservative import ConservativePlacement
from swarm.routing.placements.petals import CACHE_TOKENS, PetalsPlacement
from swarm.routing.planned import route_costs
from swarm.routing.policies import router_named
from swarm.routing.routers.waiting import Rounding, at_once, petals_retries
from swarm.spans import PeerId, Span

RATE_PER_S, PROMPT_TOKENS, OUTPUT_TOKENS = 2.57, 2048, 28
LENGTH_SIGMA = 0.85
BLOCKS, BLOCK_BYTES, CACHE_BYTES_PER_TOKEN = 32, 0.4375e9, 2 * 4096 * 2
LLAMA = HostedModel("LLaMA-2-7B", BLOCKS, BLOCK_BYTES, CACHE_BYTES_PER_TOKEN, 2 * 4096)
FLOPS, WEIGHTS_GB, LAUNCH_S = 5e9, 1.32, 0.001
"""`t_o + F / f * l_in + s_m / b * (l_out - 1)` of a block: the authors keep BLOOM's F and s_m."""
SLICES = ((3, "3g.40gb", 40e9, 156e12, 1020.0), (6, "2g.20gb", 20e9, 78e12, 510.0))
"""How many, name, memory, flop/s, GB/s."""
OVERHEAD = HopOverhead(decode_s=0.0, prefill_s=0.05, prefill_token_s=0.0)
PUBLISHED = {"petals": 31.4, "bprr": 19.8, "whole model, jffc": 10.0, "gbp-cr, jffc": 7.3}
"""Mean response in seconds."""


def inventory(rng: np.random.Generator) -> Inventory:
    """The nearest three nodes are the larger slices, as in the authors' simulation."""
    count = sum(slices for slices, *_ in SLICES)
    rtt = wide_area_rtt_s(count + 1, rng)
    nearest = np.argsort(rtt[-1, :-1])
    order = np.append(nearest, count)
    machines: list[Machine] = []
    for slices, name, memory, flops, bandwidth in SLICES:
        speed = ServerSpeed(
            0.0,
            WEIGHTS_GB / bandwidth,
            prefill_block_s=LAUNCH_S,
            prefill_token_s=FLOPS / flops,
        )
        for _ in range(slices):
            machines.append(Machine(PeerId(f"{name}-{len(machines)}"), memory, speed))
    peers = [*(machine.peer for machine in machines), PeerId("client")]
    network = MatrixNetwork(peers, rtt[np.ix_(order, order)] / 2)
    return Inventory(
        LLAMA, tuple(machines), (PeerId("client"),), network, ChainMode.RELAY, OVERHEAD
    )


class WholeModelPlacement:
    """Every machine hosts everything."""

    def place(self, given: Inventory, workload: Workload) -> Layout:
        return Layout(BLOCKS, dict.fromkeys([one.peer for one in given.machines], Span(0, BLOCKS)))


@dataclass(frozen=True)
class Policy:
    name: str
    place: Callable[[Inventory, Workload, random.Random], Layout]
    router: str
    rounding: Rounding = at_once
    fixed_cache: bool = False
    """Petals gives each block a cache of 4,096 tokens, however much memory is left."""


POLICIES = (
    Policy(
        "petals",
        lambda i, w, rng: PetalsPlacement(rng, rebalance=False).place(i, w),
        "petals",
        at_once,
        True,
    ),
    Policy("bprr", lambda i, w, _: ConservativePlacement().place(i, w), "ws-rr", petals_retries),
    Policy("whole model, jffc", lambda i, w, _: WholeModelPlacement().place(i, w), "jffc"),
    Policy("gbp-cr, jffc", lambda i, w, _: ChainsPlacement().place(i, w), "jffc"),
    Policy("ours (best, threshold)", lambda i, w, _: BestPlacement().place(i, w), "threshold"),
    Policy("ours (best, jffc)", lambda i, w, _: BestPlacement().place(i, w), "jffc"),
)
OURS = "ours"
WORKLOAD = Workload(PROMPT_TOKENS, OUTPUT_TOKENS, rate_per_s=RATE_PER_S)
_GROUP = 4
"""Blocks of a chain over both kinds of slices that its bound counts together."""


def drawn(
    seed: int, requests: int, *, bursts: bool, lengths: bool
) -> tuple[Inventory, list[Arrival]]:
    """The network and the requests of one run."""
    rng = np.random.default_rng(seed)
    given = inventory(rng)
    times = (bursty_arrivals_s if bursts else poisson_arrivals_s)(requests, RATE_PER_S, rng)
    counts = np.full(requests, float(OUTPUT_TOKENS))
    if lengths:
        counts = OUTPUT_TOKENS * np.exp(rng.normal(-(LENGTH_SIGMA**2) / 2, LENGTH_SIGMA, requests))
    tokens = [max(1, round(float(one))) for one in counts]
    return given, [Arrival(at, count) for at, count in zip(times, tokens, strict=True)]


def run(policy: Policy, seed: int, given: Inventory, arrivals: list[Arrival]) -> list[Outcome]:
    workload = WORKLOAD
    layout = policy.place(given, workload, random.Random(seed))
    cache = (
        {peer: CACHE_TOKENS * len(span) for peer, span in layout.spans.items()}
        if policy.fixed_cache
        else {}
    )
    router = router_named(policy.router, route_costs(given), random.Random(seed))
    booking = Booking(given, layout, workload, router, rounding=policy.rounding, cache_tokens=cache)
    return booking.run(arrivals)


def bound_s(given: Inventory, arrivals: list[Arrival], reached_s: float) -> float:
    """What no placement and no router has: a bound of the mean response.

    Caches are what is scarce. A chain takes at least one hop, at least two if it runs over both
    kinds of slices or over two that do not host everything; it holds cache for its blocks on each
    kind. So many of the larger slices may host the whole model, the others of both kinds as little
    as one block: the bound is the least over all numbers of them.
    """
    figures = tables(given, WORKLOAD)
    steps = np.array([one.output_tokens for one in arrivals]) - 1.0
    large = SLICES[0][0]
    hop_s, blocks_s = [], []
    for kind in (slice(0, large), slice(large, None)):
        per_token_s = figures.decode_hop_s[0, kind].min()
        hop_s.append(figures.prefill_hop_s[0, kind].min() + steps * per_token_s)
        each_s = figures.prefill_block_s[kind].min() + steps * figures.decode_block_s[kind].min()
        blocks_s.append(BLOCKS * each_s)
    session = BLOCKS * figures.cache_bytes
    rest = (figures.memory - figures.block_bytes) / session
    beside_all = (figures.memory[0] - BLOCKS * figures.block_bytes) / session
    ways = [
        Way(hop_s[0] + blocks_s[0], (1.0, 1.0, 0.0)),
        Way(2 * hop_s[0] + blocks_s[0], (0.0, 1.0, 0.0)),
        Way(hop_s[1] + blocks_s[1], (0.0, 0.0, 1.0)),
    ]
    for low in range(1, BLOCKS, _GROUP):
        high = min(low + _GROUP, BLOCKS) - 1
        share = high / BLOCKS
        lasts_s = hop_s[0] + hop_s[1] + share * blocks_s[0] + (1 - share) * blocks_s[1]
        ways.append(Way(lasts_s, (0.0, low / BLOCKS, 1 - share)))
    found = np.inf
    for hosting_all in range(large, -1, -1):
        pools = (
            hosting_all * int(beside_all + 1e-9),
            hosting_all * beside_all + rest[hosting_all:large].sum(),
            rest[large:].sum(),
        )
        possible = ways if hosting_all else ways[1:]
        times = [one.at_s for one in arrivals]
        least = least_mean_response_s(times, possible, pools, reached_s=reached_s, enough_s=found)
        found = min(found, least)
    return float(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    for bursts in (False, True):
        for lengths in (False, True):
            kind = f"{'bursts' if bursts else 'Poisson'}, {'log-normal' if lengths else 'equal'}"
            print(f"\n{kind} lengths; {options.runs} runs of {options.requests} requests")
            print(f"  {'policy':24} {'published':>9} {'response':>9} {'p95':>7} {'wait':>7}")
            cases = [
                drawn(seed, options.requests, bursts=bursts, lengths=lengths)
                for seed in range(options.runs)
            ]
            means: dict[str, list[float]] = {}
            for policy in POLICIES:
                runs = [run(policy, seed, *case) for seed, case in enumerate(cases)]
                report(policy.name, [outcome for outcomes in runs for outcome in outcomes])
                means[policy.name] = [
                    statistics.fmean(one.response_s for one in outcomes) for outcomes in runs
                ]
            bounds = [
                bound_s(given, arrivals, min(each[seed] for each in means.values()))
                for seed, (given, arrivals) in enumerate(cases)
            ]
            verdict({name: statistics.fmean(each) for name, each in means.items()}, bounds)


def report(name: str, outcomes: list[Outcome]) -> None:
    responses = sorted(one.response_s for one in outcomes)
    mean = statistics.fmean(responses)
    wait = statistics.fmean(one.wait_s for one in outcomes)
    p95 = responses[int(0.95 * (len(responses) - 1))]
    published = f"{PUBLISHED[name]:.1f}" if name in PUBLISHED else ""
    print(f"  {name:24} {published:>9} {mean:9.2f} {p95:7.1f} {wait:7.2f}", flush=True)


def verdict(means: dict[str, float], bounds: list[float]) -> None:
    """Ours beside the best anchor, and both beside the bound."""
    anchor = min(mean for name, mean in means.items() if not name.startswith(OURS))
    own = min(mean for name, mean in means.items() if name.startswith(OURS))
    bound = statistics.fmean(bounds)
    print(
        f"  ours {100 * (own / anchor - 1):+.1f} % to the best anchor; no policy is below"
        f" {bound:.2f} (best anchor {100 * (anchor / bound - 1):+.1f} %, ours"
        f" {100 * (own / bound - 1):+.1f} %)",
        flush=True,
    )


if __name__ == "__main__":
    main()
