"""Beyond the papers: many volunteers with churn, old views and liars, under every policy.

    python benchmarks/beyond.py
    python benchmarks/beyond.py --policy petals+petals --policy best+two-choices --requests 500

The scenario is `volunteers.yaml`: 200 machines of six GPU classes with log-normal round trips, a
fifth of them relayed, median stay four hours, 50 clients whose lists of servers are 30 s old, one
machine in twenty announcing four times its speed. All policies see the same requests, comings and
liars. What is asked of ours: the most loaded of equal replicas carries at most 1.5 times their
mean, every block is covered all the time, and mean and p99 are better than with every other policy.

Three ways to say who is an equal. `busiest equal`: who would have served a session's hop as well to
5 % (`EqualShares`); there are few. `busiest alike`: who has the same span and speed and relay, and
is as far from the hops before and after to a quarter. `busiest kind`: servers of one kind and span
wherever they stand; with round trips that differ between every two peers, those near the clients
and near each other are rightly asked more often.
"""

import time
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from common import Report, arguments

from swarm.cli.plan_inventory import read_plan
from swarm.cli.plan_simulating import POLICIES, split_policy
from swarm.errors import SwarmError
from swarm.routing.policies import placement_named
from swarm.simulator.simulation import simulate

VOLUNTEERS = Path(__file__).with_name("volunteers.yaml")
MAX_HERDING = 1.5
OURS = POLICIES[-1]
_BAR_CELLS = 44


def run(plan: Path, policy: str, requests: int, seed: int) -> dict[str, Any]:
    """One policy with one seed."""
    file = read_plan(plan)
    placement, router = split_policy(policy)
    inventory, workload = file.inventory(), file.workload.workload(None)
    began = time.process_time()
    layout = placement_named(placement, Random(seed)).place(inventory, workload)
    place_s = time.process_time() - began
    scenario = file.scenario(inventory, layout, requests=requests, rate_per_s=None, seed=seed)
    found = simulate(scenario, router).summary()
    return {
        "policy": policy,
        "seed": seed,
        "place s": place_s,
        "mean s": found["response_s"]["mean"],
        "p99 s": found["response_s"]["p99"],
        "first s": found["ttft_s"]["mean"],
        "token ms": 1e3 * found["tpot_s"]["mean"],
        "failed": found["failed"],
        "repairs": found["repairs"],
        "moves": found["moves"],
        "hops": found["mean_hops"],
        "busiest equal": found["busiest_equal"],
        "busiest alike": found["busiest_alike"],
        "busiest kind": found["busiest_replica"],
        "covered %": 100 * found["covered_share"],
        "left": found["leaves"],
    }


def bars(rows: list[dict[str, Any]]) -> str:
    """Mean and, lighter, p99 of each policy."""
    longest = max(row["p99 s"] for row in rows)
    lines = ["seconds from the request to its last token: mean, and p99 (light)"]
    for row in rows:
        mean, p99 = (round(_BAR_CELLS * row[name] / longest) for name in ("mean s", "p99 s"))
        bar = "█" * mean + "░" * (p99 - mean)
        lines.append(f"  {row['policy']:22} {bar} {row['mean s']:.1f} / {row['p99 s']:.1f}")
    return "\n".join(lines)


def main() -> None:
    options = arguments(__doc__, repetitions=1)
    options.add_argument("--plan", type=Path, default=VOLUNTEERS)
    options.add_argument("--policy", action="append", help="PLACEMENT+ROUTER; all by default")
    options.add_argument("--requests", type=int, default=1000, help="of each run")
    options.add_argument("--first", type=int, default=0, help="the first seed; --repetitions more")
    chosen = options.parse_args()
    report = Report("beyond the papers: volunteers", as_json=chosen.json)
    means: list[dict[str, Any]] = []
    for policy in chosen.policy or POLICIES:
        rows: list[dict[str, Any]] = []
        for seed in range(chosen.first, chosen.first + chosen.repetitions):
            try:
                rows.append(run(chosen.plan, policy, chosen.requests, seed))
            except SwarmError as error:
                report.note(f"{policy}, seed {seed}: {error}")
        if rows:
            report.table(f"{policy}, seed by seed", rows)
            means.append(
                {
                    name: policy if name == "policy" else _mean([row[name] for row in rows])
                    for name in rows[0]
                    if name != "seed"
                }
            )
    means.sort(key=lambda row: row["mean s"])
    report.table(f"means over {chosen.repetitions} seeds, {chosen.requests} requests each", means)
    if not chosen.json:
        print("\n" + bars(means))
        for row in means:
            if row["policy"] == OURS:
                print("\n" + verdict(row, [one for one in means if one is not row]))
    report.finish()


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def verdict(ours: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """What is asked of ours, and what is so."""
    lines = []
    for name in ("busiest equal", "busiest alike", "busiest kind"):
        busiest = ours[name]
        told = "too few sessions to tell" if busiest is None else f"{busiest:.2f} of the mean"
        lines.append(f"{name}: {told} (limit {MAX_HERDING})")
    lines.append(f"all blocks covered {ours['covered %']:.2f} % of the time")
    for name in ("mean s", "p99 s"):
        if others:
            best = min(others, key=lambda row: row[name])
            lines.append(
                f"{name[:-2]}: {ours[name]:.1f} s, best other {best[name]:.1f} s ({best['policy']},"
                f" ours {100 * (ours[name] / best[name] - 1):+.1f} %)"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
