"""The single rows beside the interference benchmark's tables: how they are measured and shown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from common import median
from interference_arms import Chosen
from interference_control import Pace
from interference_network import UNLIMITED_MBIT, Shape
from interference_report import figures
from interference_swarm import STAGES, InterferenceSwarm, Load, Point

from swarm.scheduling.pass_planner import PASS_BUDGET_S

ALWAYS_TOKENS = 1024
STREAMED_TOKENS = 2048
ALWAYS_BAR = 1.2
STREAMED_BAR = 0.65
SAME_BAR = 1.05
STREAMED_POINTS = {
    "20 Mbit/s, paced": Point(Shape(20.0, 20.0), Pace(5.0, 0.2), 0),
    "100 Mbit/s, paced": Point(Shape(100.0, 20.0), Pace(5.0, 0.05), 0),
    "no limit, paced": Point(Shape(UNLIMITED_MBIT, 20.0), Pace(5.0, 0.2), 0),
    "no limit, computed on two cores": Point(Shape(UNLIMITED_MBIT, 20.0), None, 0),
}
COMPUTED_LIMIT = STAGES / 2 / STAGES
"""Of streamed to store-and-forward where two cores compute three stages: work over cores."""


def measure_always(
    swarm: InterferenceSwarm, point: Point, arms: Sequence[str], seconds: float, seeds: int
) -> dict[str, list[Any]]:
    """Decoding beside one prompt of 1,024 tokens that is always in flight."""
    found: dict[str, list[Any]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        for arm in arms if seed % 2 == 0 else arms[::-1]:
            load = Load(seed + 1, seconds, 0.0, fill_s=2.0, always_tokens=ALWAYS_TOKENS)
            found[arm].append(asdict(swarm.run(point, Chosen(arm=arm), load)))
    return found


def measure_streamed(swarm: InterferenceSwarm, point: Point, turns: int) -> dict[str, list[float]]:
    """Seconds to the first token of a lone prompt, in chunks and as a whole; the links are the
    product's in both."""
    ways = {"streamed": Chosen(), "whole": Chosen(whole_prompts=True)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    swarm.one_prompt(point, Chosen(), STREAMED_TOKENS, 99)  # rates and costs are learnt
    for turn in range(turns):
        for name in ways if turn % 2 == 0 else reversed(ways):
            found[name].append(swarm.one_prompt(point, ways[name], STREAMED_TOKENS, turn))
    return found


def always_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Beside the same arm's idle figures."""
    rows = []
    for name, arms in results.items():
        kind, _, point = name.partition(" ")
        idle = results.get(f"idle {point}")
        if kind != "always" or idle is None:
            continue
        for arm, runs in arms.items():
            if arm not in idle:
                continue
            found, alone = figures(runs), figures(idle[arm])
            bar = (alone.p99 + STAGES * 1e3 * PASS_BUDGET_S) * ALWAYS_BAR
            paced = not point.startswith("5 ")
            rows.append(
                {
                    "point": point,
                    "arm": arm,
                    "p99 ms": found.p99,
                    "idle p99": alone.p99,
                    "ratio": found.p99 / alone.p99,
                    "at most": bar if paced else None,
                    "TPOT ms": found.tpot,
                    "TTFT s": found.ttft_s,
                    "all, cores": found.all_cores,
                    "prompts": found.prompts,
                }
            )
    return rows


def streamed_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, ways in results.items():
        kind, _, point = name.partition(" ")
        if kind != "streamed":
            continue
        streamed, whole = median(ways["streamed"]), median(ways["whole"])
        rows.append(
            {
                "point": point,
                "streamed s": streamed,
                "store and forward s": whole,
                "ratio": streamed / whole,
                "at most": STREAMED_BAR if "paced" in point else None,
                "limit": None if "paced" in point else COMPUTED_LIMIT,
            }
        )
    return rows


def uncontended_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """C against the best other arm while nobody prompts."""
    rows = []
    for name, arms in results.items():
        kind, _, point = name.partition(" ")
        if kind != "idle" or "C" not in arms or len(arms) < 2:
            continue
        found = {arm: figures(runs) for arm, runs in arms.items()}
        ours = found.pop("C")
        best = min(found, key=lambda arm: found[arm].tpot)
        rows.append(
            {
                "point": point,
                "TPOT ms, C": ours.tpot,
                "best other": found[best].tpot,
                "which": best,
                "ratio": ours.tpot / found[best].tpot,
                "at most": SAME_BAR,
            }
        )
    return rows


def bulk_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, ways in results.items():
        kind, _, path = name.partition(" ")
        if kind != "bulk":
            continue
        link, raw = ways["link"], ways["raw"]
        link_mbit, raw_mbit = (median([one["mbit"] for one in way]) for way in (link, raw))
        rows.append(
            {
                "path": path,
                "link Mbit/s": link_mbit,
                "raw stream": raw_mbit,
                "ratio": link_mbit / raw_mbit,
                "at least": 0.7 if path == "loopback" else 0.95,
                "link, CPU s/GB": median([one["cpu_s_per_gb"] for one in link]),
                "raw, CPU s/GB": median([one["cpu_s_per_gb"] for one in raw]),
            }
        )
    return rows
