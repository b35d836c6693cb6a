"""Figures of the interference benchmark from its runs: rows, and ratios of two arms.

A point's figures are pooled over its seeds: the gaps of all sessions of all seeds together. Ratios
are of such pooled figures of two arms; beside them stand the least and the largest of the single
seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common import percentile
from interference_results import Run, Runs, commits


@dataclass(frozen=True)
class Figures:
    """Of one arm at one point; times in milliseconds but where the name says otherwise."""

    tpot: float
    """The mean over sessions of their mean gap: long gaps weigh as a reader feels them."""
    p50: float
    p99: float
    longest: float
    ttft_s: float | None
    link_use: float
    stage_cores: float
    """Of the busiest stage."""
    all_cores: float
    gaps: int
    prompts: int


def figures(runs: Sequence[Run]) -> Figures:
    """Pooled over the seeds."""
    sessions = [session for run in runs for session in run["gaps_ms"] if session]
    gaps = [gap for session in sessions for gap in session]
    ttfts = [prompt["ttft_s"] for run in runs for prompt in run["prompts"]]
    return Figures(
        tpot=_mean([_mean(session) for session in sessions]),
        p50=percentile(gaps, 0.5),
        p99=percentile(gaps, 0.99),
        longest=max(gaps),
        ttft_s=_mean(ttfts) if ttfts else None,
        link_use=_mean([run["link_use"] for run in runs]),
        stage_cores=max(max(run["stage_cores"]) for run in runs),
        all_cores=_mean([run["all_cores"] for run in runs]),
        gaps=len(gaps),
        prompts=len(ttfts),
    )


def arm_rows(point: str, runs: Runs) -> list[dict[str, Any]]:
    """A row for each arm."""
    rows = []
    for arm, of_arm in runs.items():
        found = figures(of_arm)
        rows.append(
            {
                "point": point,
                "arm": arm,
                "TPOT ms": found.tpot,
                "gap p50": found.p50,
                "p99": found.p99,
                "longest": found.longest,
                "TTFT s": found.ttft_s,
                "link use": found.link_use,
                "busiest stage, cores": found.stage_cores,
                "all, cores": found.all_cores,
                "gaps": found.gaps,
                "prompts": found.prompts,
                "seeds": len(of_arm),
                "commit": commits({arm: of_arm}),
            }
        )
    return rows


def ratio_row(point: str, runs: Runs) -> dict[str, Any] | None:
    """C against the others; None without C and A."""
    if "C" not in runs or "A" not in runs:
        return None
    ours, base = figures(runs["C"]), figures(runs["A"])
    pairs = [(figures([c]), figures([a])) for c, a in zip(runs["C"], runs["A"], strict=True)]
    row: dict[str, Any] = {
        "point": point,
        "TPOT C/A": ours.tpot / base.tpot,
        "of seeds": _range([c.tpot / a.tpot for c, a in pairs]),
        "p99 C/A": ours.p99 / base.p99,
        "of seeds ": _range([c.p99 / a.p99 for c, a in pairs]),
        "TTFT C/A": None if not ours.ttft_s or not base.ttft_s else ours.ttft_s / base.ttft_s,
    }
    for other in ("A'", "B"):
        row[f"p99 C/{other}"] = ours.p99 / figures(runs[other]).p99 if other in runs else None
    return row


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f}-{max(values):.2f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
