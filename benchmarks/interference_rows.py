"""The single rows beside the interference benchmark's tables, of what was measured."""

from typing import Any

from common import median
from interference_control import Pace
from interference_network import UNLIMITED_MBIT, Shape
from interference_report import figures
from interference_results import Results, commits
from interference_swarm import STAGES, Point

from swarm.scheduling.pass_planner import PASS_BUDGET_S

ALWAYS_TOKENS = 1024
STREAMED_TOKENS = 2048
STREAMED_POINTS = {
    "20 Mbit/s, paced": Point(Shape(20.0, 20.0), Pace(5.0, 0.2), 0),
    "100 Mbit/s, paced": Point(Shape(100.0, 20.0), Pace(5.0, 0.05), 0),
    "no limit, paced": Point(Shape(UNLIMITED_MBIT, 20.0), Pace(5.0, 0.2), 0),
    "no limit, computed on two cores": Point(Shape(UNLIMITED_MBIT, 20.0), None, 0),
}
COMPUTED_LIMIT = STAGES / 2 / STAGES
"""Of streamed to store-and-forward where two cores compute three stages: work over cores."""


def always_rows(results: Results) -> list[dict[str, Any]]:
    """Decoding beside one prompt of 1,024 tokens that is always in flight, and the same arm's
    figures when nobody prompts."""
    rows = []
    alone = results.of_kind("idle")
    for point, arms in results.of_kind("always").items():
        for arm, runs in arms.items():
            found = figures(runs)
            idle = figures(alone[point][arm]) if arm in alone.get(point, {}) else None
            rows.append(
                {
                    "point": point,
                    "arm": arm,
                    "p99 ms": found.p99,
                    "idle p99": idle.p99 if idle else None,
                    "ratio": found.p99 / idle.p99 if idle else None,
                    "idle + passes": idle.p99 + STAGES * 1e3 * PASS_BUDGET_S if idle else None,
                    "TPOT ms": found.tpot,
                    "TTFT s": found.ttft_s,
                    "busiest stage, cores": found.stage_cores,
                    "all, cores": found.all_cores,
                    "gaps": found.gaps,
                    "prompts": found.prompts,
                    "commit": commits({arm: runs}),
                }
            )
    return rows


def streamed_rows(results: Results) -> list[dict[str, Any]]:
    """First token of a lone prompt of 2,048 tokens over three stages."""
    rows = []
    for point, ways in results.of_kind("streamed").items():
        streamed, whole = (
            median([run["ttft_s"] for run in ways[way]]) for way in ("streamed", "whole")
        )
        rows.append(
            {
                "point": point,
                "streamed s": streamed,
                "store and forward s": whole,
                "ratio": streamed / whole,
                "limit": None if "paced" in point else COMPUTED_LIMIT,
                "turns": len(ways["streamed"]),
                "commit": commits(ways),
            }
        )
    return rows


def uncontended_rows(results: Results) -> list[dict[str, Any]]:
    """C against the best other arm while nobody prompts."""
    rows = []
    for point, arms in results.of_kind("idle").items():
        found = {arm: figures(runs) for arm, runs in arms.items()}
        if "C" not in found or len(found) < 2:
            continue
        ours = found.pop("C")
        best = min(found, key=lambda arm: found[arm].tpot)
        rows.append(
            {
                "point": point,
                "TPOT ms, C": ours.tpot,
                "best other": found[best].tpot,
                "which": best,
                "ratio": ours.tpot / found[best].tpot,
            }
        )
    return rows


def bulk_rows(results: Results) -> list[dict[str, Any]]:
    """A link without decode beside a raw stream."""
    rows = []
    for path, ways in results.of_kind("bulk").items():
        link, raw = ways["link"], ways["raw"]
        link_mbit, raw_mbit = (median([one["mbit"] for one in way]) for way in (link, raw))
        rows.append(
            {
                "path": path,
                "link Mbit/s": link_mbit,
                "raw stream": raw_mbit,
                "ratio": link_mbit / raw_mbit,
                "link, CPU s/GB": median([one["cpu_s_per_gb"] for one in link]),
                "raw, CPU s/GB": median([one["cpu_s_per_gb"] for one in raw]),
                "turns": len(link),
                "commit": commits(ways),
            }
        )
    return rows
