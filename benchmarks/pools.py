"""How far our placement is from the optimum: random volunteer pools, three numbers of sessions.

    python benchmarks/pools.py
    python benchmarks/pools.py --results FILE   what is in it already is not computed again

A pool has 16 to 40 machines of six GPU classes and one client; every pair's round trip is
log-normal (median 80 ms, sigma 0.6). The model has 80 blocks as Llama-2-70B, in nf4; a session
reserves 2,048 tokens. The cost is the mean time per decoded token of R sessions, routed as well as
can be over the placement, in the relay chain of Sun et al. (arXiv 2512.21884). The optimum is that
of the boundary-flow program (HiGHS, 30 s) over all starts, with the sizes of CG-BP and those that
our placement took; where it is not proved in time, the gap is to the dual bound, and infinite
where there is none yet.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from swarm.errors import MemoryShortError
from swarm.routing.hardware import hardware_named, roofline
from swarm.routing.inventory import HostedModel, Inventory, Machine, Workload
from swarm.routing.layout import Layout
from swarm.routing.model_shape import shape_of
from swarm.routing.network import MatrixNetwork
from swarm.routing.performance import ChainMode, HopOverhead
from swarm.routing.placements.best import BestPlacement
from swarm.routing.placements.conservative import ConservativePlacement
from swarm.routing.placements.optimum import TIME_LIMIT_S, OptimalPlacement, layout_cost
from swarm.spans import PeerId

SESSIONS = (8, 32, 64)
CLIENTS = 1
GPUS = ("rtx-3060", "t4-16gb", "rtx-3090", "rtx-4090", "rtx-5090", "a100-40gb")
USABLE = 0.9
"""Of a card's memory."""
LLAMA_2_70B = shape_of(
    {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "num_hidden_layers": 80,
    },
    "Llama-2-70B",
)
MODEL = HostedModel.of(LLAMA_2_70B, "float16", "nf4")


def pool(seed: int) -> Inventory:
    rng = random.Random(seed)
    count = rng.randint(16, 40)
    machines = []
    for number in range(count):
        card = hardware_named(rng.choice(GPUS))
        machines.append(
            Machine(
                PeerId(f"{card.name}-{number}"),
                USABLE * card.memory_gb * 1e9,
                roofline(card, LLAMA_2_70B, "float16", "nf4"),
            )
        )
    clients = tuple(PeerId(f"client-{number}") for number in range(CLIENTS))
    peers = [*(machine.peer for machine in machines), *clients]
    rtt = np.zeros((len(peers), len(peers)))
    for one in range(len(peers)):
        for other in range(one):
            rtt[one, other] = rtt[other, one] = rng.lognormvariate(math.log(0.08), 0.6)
    network = MatrixNetwork(peers, rtt / 2)
    return Inventory(MODEL, tuple(machines), clients, network, ChainMode.RELAY, HopOverhead())


class _Given:
    """A placement that is there already."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def place(self, inventory: Inventory, workload: Workload) -> Layout:
        return self._layout


@dataclass(frozen=True)
class Result:
    seed: int
    machines: int
    sessions: int
    ours: float
    """Gap to the optimum, or to the bound; infinite where the program found no bound in time."""
    conservative: float
    proved: bool
    seconds: float


def run(seed: int, sessions: int, time_limit_s: float) -> Result | None:
    """None if the pool cannot hold so many sessions."""
    inventory = pool(seed)
    workload = Workload(1024, 1024, sessions)
    try:
        ours = BestPlacement().place(inventory, workload)
        greedy = ConservativePlacement().place(inventory, workload)
    except MemoryShortError:
        return None
    cost = layout_cost(inventory, ours, workload).objective_s
    theirs = layout_cost(inventory, greedy, workload).objective_s
    if not math.isfinite(cost):
        return None
    began = time.perf_counter()
    best = OptimalPlacement(_Given(ours), time_limit_s=time_limit_s).place(inventory, workload)
    seconds = time.perf_counter() - began
    bound = best.notes["bound_s"]
    proved = best.notes["optimal"] == 1.0
    least = best.notes["objective_s"] if proved else bound
    return Result(
        seed,
        len(inventory.machines),
        sessions,
        _gap(cost, least),
        _gap(theirs, least),
        proved,
        seconds,
    )


def _gap(cost: float, least: float) -> float:
    return cost / least - 1 if 0 < least < math.inf else math.inf


def summary(sessions: int, results: Sequence[Result]) -> str:
    if not results:
        return f"R = {sessions}: no pool can hold them"
    bounded = [one for one in results if math.isfinite(one.ours)]
    worst = max(bounded, key=lambda one: one.ours)
    gaps = [100 * one.ours for one in results]
    return (
        f"R = {sessions}: {len(results)} pools, ours median {statistics.median(gaps):.2f} %, "
        f"worst {100 * worst.ours:.2f} % (seed {worst.seed}, "
        f"{worst.machines} machines, {'proved' if worst.proved else 'to the bound'}); CG-BP median "
        f"{100 * statistics.median(one.conservative for one in results):.2f} %; "
        f"{sum(one.proved for one in results)} proved, median "
        f"{statistics.median(one.seconds for one in results):.1f} s; without a bound in time (as "
        f"infinite in the medians): {len(results) - len(bounded)}"
    )


def line(one: Result) -> str:
    return (
        f"  seed {one.seed:3} R {one.sessions:2} machines {one.machines:2}"
        f" ours {100 * one.ours:6.2f} % cg-bp {100 * one.conservative:6.2f} %"
        f" {'proved' if one.proved else 'bound '} {one.seconds:5.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT_S, help="seconds")
    parser.add_argument("--results", type=Path, help="JSON lines: kept, and gone on from")
    options = parser.parse_args()
    print(f"{options.pools} pools from seed {options.first}; gaps to the optimum (or the bound)")
    known: dict[tuple[int, int], Result | None] = {}
    if options.results and options.results.exists():
        for text in options.results.read_text().splitlines():
            found = json.loads(text)
            known[found["seed"], found["sessions"]] = Result(**found) if "ours" in found else None
    results: list[Result] = []
    for seed in range(options.first, options.first + options.pools):
        for sessions in SESSIONS:
            if (seed, sessions) in known:
                result = known[seed, sessions]
            else:
                result = run(seed, sessions, options.time_limit)
                if options.results:
                    kept = asdict(result) if result else {"seed": seed, "sessions": sessions}
                    with options.results.open("a") as file:
                        file.write(json.dumps(kept) + "\n")
            if result is not None:
                results.append(result)
                print(line(result), flush=True)
    for sessions in SESSIONS:
        print(summary(sessions, [one for one in results if one.sessions == sessions]))


if __name__ == "__main__":
    main()
