"""What `swarm-plan simulate` and `swarm-plan compare` show: tables, lines, a plot, fields."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from swarm.errors import SwarmError, UsageError
from swarm.simulator.results import Result

_BAR_CELLS = 50


def result_fields(policy: str, result: Result | SwarmError) -> dict[str, Any]:
    """For `--json`; the same for the same seed."""
    if isinstance(result, SwarmError):
        return {"policy": policy, "error": str(result)}
    servers = [
        {
            "machine": one.machine,
            "blocks": str(one.span),
            "busy_share": one.busy_share,
            "passes": one.passes,
            "present_s": one.present_s,
            "liar": one.liar,
        }
        for one in result.servers
    ]
    return {"policy": policy, **result.summary(), "servers": servers}


def comparison_table(found: Mapping[str, Result | SwarmError]) -> Table:
    """One row for each policy, the quickest first."""
    table = Table(title=Text("responses, from asking to the last token"), title_justify="left")
    table.add_column("placement+router", no_wrap=True)
    for heading in ("mean s", "p99 s", "TTFT s", "TPOT ms", "done", "failed", "repairs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("busiest equal", "covered"):
        table.add_column(heading, justify="right")
    for policy in ranked(found):
        result = found[policy]
        if isinstance(result, SwarmError):
            table.add_row(policy, Text(str(result)))
            continue
        one = result.summary()
        table.add_row(
            policy,
            _figure(one["response_s"]["mean"]),
            _figure(one["response_s"]["p99"]),
            _figure(one["ttft_s"]["mean"]),
            _figure(one["tpot_s"]["mean"], 1e3),
            f"{one['done']:,}",
            f"{one['failed']:,}",
            f"{one['repairs']:,}",
            _figure(one["busiest_equal"]),
            f"{100 * one['covered_share']:.1f} %",
        )
    return table


def ranked(found: Mapping[str, Result | SwarmError]) -> list[str]:
    """By failures, then by the mean response; those that found no placement last."""

    def key(policy: str) -> tuple[int, int, float]:
        result = found[policy]
        if isinstance(result, SwarmError):
            return 1, 0, 0.0
        one = result.summary()
        mean_s = one["response_s"]["mean"]
        return 0, one["failed"], float("inf") if mean_s is None else mean_s

    return sorted(found, key=key)


def result_table(policy: str, result: Result) -> Table:
    """One simulation in full."""
    one = result.summary()
    title = (
        f"{policy}, seed {result.seed}: {one['requests']:,} requests in {one['simulated_s']:,.0f} s"
    )
    table = Table(title=Text(title), title_justify="left")
    for heading in ("seconds", "mean", "median", "p99"):
        table.add_column(heading, justify="left" if heading == "seconds" else "right")
    for name, label in (
        ("ttft_s", "to the first token"),
        ("tpot_s", "for each further token"),
        ("response_s", "for the whole request"),
    ):
        values = one[name]
        table.add_row(label, *(_figure(values[key]) for key in ("mean", "median", "p99")))
    return table


def result_lines(result: Result) -> list[str]:
    """What stands below its table."""
    one = result.summary()
    failures = ", ".join(f"{count} {name}" for name, count in one["failures"].items())
    busiest = sorted(result.servers, key=lambda server: -server.busy_share)[:3]
    loads = ", ".join(f"{server.machine} {100 * server.busy_share:.0f} %" for server in busiest)
    lines = [
        f"{one['tokens_per_s']:,.1f} tokens/s, {one['done']:,} done, {one['failed']:,} failed"
        + (f" ({failures})" if failures else ""),
        f"{one['repairs']:,} repairs, longest gap between two tokens {one['longest_gap_s']:.2f} s",
        f"all blocks served {100 * one['covered_share']:.1f} % of the time; {one['joins']} joins, "
        f"{one['leaves']} leaves, {one['faults']} faults",
        f"busiest servers: {loads}",
        f"{one['events']:,} events",
    ]
    return lines


def text_plot(found: Mapping[str, Result | SwarmError]) -> str:
    """Mean and p99 of the responses as bars, in plain text."""
    rows: list[tuple[str, float, float]] = []
    for policy in ranked(found):
        result = found[policy]
        if isinstance(result, SwarmError):
            continue
        times = result.summary()["response_s"]
        if times["mean"] is not None:
            rows.append((policy, times["mean"], times["p99"]))
    longest = max((p99 for _, _, p99 in rows), default=1.0) or 1.0
    lines = ["response in seconds: mean (full), p99 (light)", ""]
    for policy, mean, p99 in rows:
        full = round(_BAR_CELLS * mean / longest)
        light = max(0, round(_BAR_CELLS * p99 / longest) - full)
        lines.append(f"{policy:24} {'█' * full}{'░' * light} {mean:.2f} / {p99:.2f}")
    return "\n".join(lines) + "\n"


def write_plot(found: Mapping[str, Result | SwarmError], path: Path) -> None:
    """Raises UsageError where the file cannot be written."""
    try:
        path.write_text(text_plot(found), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _figure(value: float | None, scale: float = 1.0) -> str:
    return "" if value is None else f"{scale * value:,.2f}"
