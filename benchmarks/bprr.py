"""The experiments of Sun et al. (arXiv 2512.21884): nine servers, BLOOM-176B, one client.

    python benchmarks/bprr.py
    python benchmarks/bprr.py --topologies FOLDER   with the topology files themselves

Prints seconds per token of each policy beside the published figures (their simulator's, which is
what is modelled here, and their testbed's), with and without the constant that their simulator adds
to each request: 250 s for Petals and 60 s for theirs, in which the caches are held.
"""

import argparse
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from booking import Arrival, Booking
from networks import TOPOLOGIES, Floats, generated_rtt_s, poisson_arrivals_s, read_rtt_s

from swarm.routing.inventory import HostedModel, Inventory, Machine, Workload, tables
from swarm.routing.layout import Layout
from swarm.routing.network import MatrixNetwork
from swarm.routing.performance import ChainMode, HopOverhead, ServerSpeed
from swarm.routing.placements.best import BestPlacement, place_optimal_chains
from swarm.routing.placements.chains import ChainsPlacement
from swarm.routing.placements.conservative import ConservativePlacement
from swarm.routing.placements.petals import CACHE_TOKENS, PetalsPlacement
from swarm.routing.planned import planned_chains, route_costs
from swarm.routing.policies import router_named
from swarm.routing.routers.waiting import Rounding, at_once, petals_retries
from swarm.spans import PeerId

SERVERS, PROMPT_TOKENS, REQUESTS = 9, 20, 100
BLOOM = HostedModel("BLOOM-176B", 70, 2_466_437_120 * 4.25 / 8 * 1.01, 2 * 14336 * 2, 2 * 14336)
OVERHEAD = HopOverhead(decode_s=0.1, prefill_s=0.067, prefill_token_s=0.7049e-3)
A100 = ServerSpeed(0.0, 3.2197e-3, prefill_block_s=32.99e-3, prefill_token_s=0.0743e-3)
MIG = ServerSpeed(0.0, 16.2488e-3, prefill_block_s=206.3547e-3, prefill_token_s=0.1041e-3)
A100_BYTES, MIG_BYTES, MAX_MIG_BLOCKS = 79.13e9, 8.2e9, 4
A100_RPS, MIG_RPS = (20829.4, 3020.4), (2757.7, 3138.1)
INITIAL_S, PETALS_S, PROPOSED_S = 0.07, 250.0, 60.0
PETALS_RESERVE_BYTES = 2 * 2**30
SETTINGS = ((0.1, 64), (0.1, 128), (0.5, 64), (0.5, 128))
"""Requests/s and output tokens."""
PUBLISHED = {
    "AboveNet": (
        ((4.98, 4.75), (4.03, 3.88), (5.26, 5.11), (4.58, 4.10)),
        ((1.86, 1.63), (1.44, 1.36), (1.97, 1.83), (1.35, 1.05)),
    ),
    "BellCanada": (
        ((6.31, 6.03), (3.82, 3.49), (6.74, 6.19), (4.16, 3.41)),
        ((1.33, 1.41), (1.26, 0.92), (1.49, 1.41), (1.11, 0.92)),
    ),
    "GTS-CE": (
        ((7.05, 6.12), (4.69, 3.47), (6.89, 5.97), (4.89, 3.37)),
        ((1.38, 1.41), (0.95, 0.91), (1.35, 1.40), (1.07, 0.91)),
    ),
}
"""Petals, then BPRR: testbed and simulator, for each of the settings."""


def inventory(rtt_s: Floats, rng: np.random.Generator) -> Inventory:
    """Nine random nodes, a fifth of them (two) an A100, and another one as the client."""
    nodes = rng.permutation(len(rtt_s))[: SERVERS + 1]
    peers = [PeerId(f"server-{number}") for number in range(SERVERS)] + [PeerId("client")]
    network = MatrixNetwork(peers, rtt_s[np.ix_(nodes, nodes)] / 2)
    fast = round(0.2 * SERVERS)
    machines = tuple(
        Machine(peer, A100_BYTES, A100)
        if number < fast
        else Machine(peer, MIG_BYTES, MIG, max_blocks=MAX_MIG_BLOCKS)
        for number, peer in enumerate(peers[:-1])
    )
    return Inventory(BLOOM, machines, (peers[-1],), network, ChainMode.RELAY, OVERHEAD)


@dataclass(frozen=True)
class Policy:
    """One row of the table."""

    name: str
    place: Callable[[Inventory, Workload, random.Random], Layout]
    router: str
    constant_s: float
    rounding: Rounding = petals_retries
    anchor: bool = True


def petals(fastest_first: bool) -> Callable[[Inventory, Workload, random.Random], Layout]:
    """Petals' placement with the authors' measured rates."""

    def place(given: Inventory, workload: Workload, rng: random.Random) -> Layout:
        rates = {
            machine.peer: A100_RPS if machine.speed is A100 else MIG_RPS
            for machine in given.machines
        }
        placement = PetalsPlacement(
            rng,
            reserve_bytes=PETALS_RESERVE_BYTES,
            fastest_first=fastest_first,
            rebalance=False,
            measured_rps=rates,
        )
        return placement.place(given, workload)

    return place


POLICIES = (
    Policy("petals", petals(False), "petals", PETALS_S),
    Policy("petals, ws-rr", petals(False), "ws-rr", PETALS_S),
    Policy("petals, fastest first", petals(True), "petals", PETALS_S),
    Policy("bprr (cg-bp, ws-rr)", lambda i, w, _: ConservativePlacement().place(i, w), "ws-rr", 60),
    Policy("cg-bp, petals", lambda i, w, _: ConservativePlacement().place(i, w), "petals", 60),
    Policy(
        "gbp-cr, jffc", lambda i, w, _: ChainsPlacement().place(i, w), "jffc", PROPOSED_S, at_once
    ),
    Policy(
        "ours (best, threshold)",
        lambda i, w, _: BestPlacement().place(i, w),
        "threshold",
        PROPOSED_S,
        at_once,
        anchor=False,
    ),
)


def seconds_per_token(
    policy: Policy, given: Inventory, workload: Workload, seed: int, *, constants: bool
) -> float:
    """Mean over the requests of one run."""
    setup_s = INITIAL_S + policy.constant_s if constants else 0.0
    # The anchors' own rules know nothing of the constant; ours is told how long caches are held.
    known = workload if policy.anchor else replace(workload, held_s=setup_s)
    layout = policy.place(given, known, random.Random(seed))
    cache = {}
    if policy.place.__qualname__.startswith("petals"):
        cache = {peer: CACHE_TOKENS * len(span) for peer, span in layout.spans.items()}
    router = router_named(policy.router, route_costs(given), random.Random(seed))
    booking = Booking(
        given,
        layout,
        workload,
        router,
        setup_s=setup_s,
        rounding=policy.rounding,
        cache_tokens=cache,
    )
    rng = np.random.default_rng(seed)
    times = poisson_arrivals_s(REQUESTS, workload.rate_per_s, rng)
    outcomes = booking.run([Arrival(at, workload.output_tokens) for at in times])
    return statistics.fmean(one.response_s for one in outcomes) / workload.output_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topologies", type=Path, help="folder with Repetita's .graph files")
    parser.add_argument("--runs", type=int, default=20, help="random choices of nodes and arrivals")
    names = [topology.name for topology in TOPOLOGIES]
    parser.add_argument("--only", choices=names, help="one topology")
    options = parser.parse_args()
    source = f"files in {options.topologies}" if options.topologies else "generated"
    print(f"seconds per token, {options.runs} runs of {REQUESTS} requests; topologies: {source}")
    chosen = [one for one in TOPOLOGIES if options.only in (None, one.name)]
    for topology in chosen:
        for setting, (rate, tokens) in enumerate(SETTINGS):
            workload = Workload(PROMPT_TOKENS, tokens, rate_per_s=rate)
            inventories: list[Inventory] = []
            for seed in range(options.runs):
                rng = np.random.default_rng(seed)
                rtt_s = (
                    read_rtt_s(options.topologies / topology.file)
                    if options.topologies
                    else generated_rtt_s(topology, rng)
                )
                inventories.append(inventory(rtt_s, rng))
            found = {
                (policy.name, constants): statistics.fmean(
                    seconds_per_token(policy, given, workload, seed, constants=constants)
                    for seed, given in enumerate(inventories)
                )
                for policy in POLICIES
                for constants in (True, False)
            }
            bound = statistics.fmean(least_service_s(given, workload) for given in inventories)
            report(topology.name, setting, found, bound)


def least_service_s(given: Inventory, workload: Workload) -> float:
    """A bound for every policy: one request alone over the placement that is best for it."""
    spans = place_optimal_chains(given, tables(given, workload), workload, 1)
    return planned_chains(given, Layout(BLOOM.num_blocks, spans), workload)[0].service_s


def report(
    topology: str, setting: int, found: dict[tuple[str, bool], float], bound_s: float
) -> None:
    rate, tokens = SETTINGS[setting]
    theirs, ours = PUBLISHED[topology][0][setting], PUBLISHED[topology][1][setting]
    print(
        f"\n{topology}, {rate} requests/s, {tokens} tokens; published (simulator / testbed): "
        f"Petals {theirs[1]} / {theirs[0]}, BPRR {ours[1]} / {ours[0]}"
    )
    print(f"  {'policy':24} {'with constants':>14} {'without':>8}")
    for policy in POLICIES:
        with_s, without_s = found[policy.name, True], found[policy.name, False]
        print(f"  {policy.name:24} {with_s:14.3f} {without_s:8.3f}")
    for constants in (True, False):
        anchor = min(found[one.name, constants] for one in POLICIES if one.anchor)
        own = min(found[one.name, constants] for one in POLICIES if not one.anchor)
        setup_s = INITIAL_S + PROPOSED_S if constants else 0.0
        bound = (bound_s + setup_s) / tokens
        words = "added" if constants else "left out"
        print(
            f"  constants {words}: ours {100 * (own / anchor - 1):+.1f} % to the best anchor;"
            f" no policy is below {bound:.3f} (best anchor {100 * (anchor / bound - 1):+.1f} %,"
            f" ours {100 * (own / bound - 1):+.1f} %)"
        )


if __name__ == "__main__":
    main()
