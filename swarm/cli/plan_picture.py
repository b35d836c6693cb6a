"""Plans on the terminal: a table of figures, and bars that show who hosts what."""

from collections.abc import Sequence
from itertools import pairwise

from rich.table import Table
from rich.text import Text

from swarm.cli.plan_placing import Plan, machine_rows
from swarm.cli.terminal import table_console
from swarm.routing.layout import Layout
from swarm.spans import Span

BAR_CELLS = 40
"""Characters that stand for all blocks of a model."""
MAX_ROWS = 60
"""Machines that the picture shows; `--json` has all."""


def bar(span: Span | None, num_blocks: int, cells: int = BAR_CELLS) -> str:
    """At most `cells` characters; those that hold a block of the span are full."""
    cells = min(cells, num_blocks)
    if span is None:
        return "·" * cells
    first = span.start * cells // num_blocks
    last = max(first + 1, -(-span.end * cells // num_blocks))
    return "·" * first + "█" * (last - first) + "·" * (cells - last)


def hosts_line(layout: Layout, cells: int = BAR_CELLS) -> str:
    """How many machines hold the worst block of each cell; `+` for ten or more."""
    hosts = layout.hosts()
    cells = min(cells, layout.num_blocks)
    edges = [cell * layout.num_blocks // cells for cell in range(cells + 1)]
    least = [min(hosts[one:other]) for one, other in pairwise(edges)]
    return "".join(str(count) if count < 10 else "+" for count in least)


def print_plan(plan: Plan) -> None:
    """Figures first, then the picture."""
    out = table_console()
    out.print(_figures(plan))
    out.print(_picture(plan))
    for line in _remarks(plan):
        out.print(Text(line))


def _figures(plan: Plan) -> Table:
    model, expected, work = plan.inventory.model, plan.expected, plan.workload
    title = (
        f"{model.name}: {model.num_blocks} blocks of {model.block_bytes / 1e9:.2f} GB on"
        f" {len(plan.inventory.machines)} machines, placed by {plan.name}"
    )
    table = Table(title=Text(title), title_justify="left", show_header=False)
    asked = f"{work.prompt_tokens} tokens in, {work.output_tokens} out"
    rows = [
        ("asked", f"{asked}, {_load(plan)}"),
        ("time to first token", milliseconds(expected.ttft_s)),
        ("time per output token", milliseconds(expected.tpot_s)),
        ("tokens/s, all sessions", f"{expected.tokens_per_s:,.1f}"),
        ("sessions that fit", f"{expected.sessions:,}"),
        ("coverage", _coverage(plan)),
        ("redundancy", f"at least {expected.least_hosts} hosts for each block, {_mean(plan)}"),
        ("gap to the optimum", _gap(plan)),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _load(plan: Plan) -> str:
    work = plan.workload
    return f"{work.sessions} sessions" if work.sessions else f"{work.rate_per_s:g} requests/s"


def _coverage(plan: Plan) -> str:
    missing = plan.layout.missing()
    return f"missing: {', '.join(map(str, missing))}" if missing else "all blocks"


def _mean(plan: Plan) -> str:
    hosts = plan.layout.hosts()
    return f"{sum(hosts) / len(hosts):.1f} on average"


def _gap(plan: Plan) -> str:
    found = plan.optimum
    if found is None:
        return "not computed"
    proof = "proved" if found.proved else "against the bound; time ran out"
    return (
        f"{100 * found.gap:.1f} % of the time per token"
        f" ({milliseconds(found.cost_s)}, best {milliseconds(found.best_s)}; {proof})"
    )


def _picture(plan: Plan) -> Table:
    table = Table()
    for heading, side in (("machine", "left"), ("blocks", "right"), ("who hosts what", "left")):
        table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for heading in ("ms/block", "weights GB", "of GB", "cache tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = machine_rows(plan)
    for row in rows[:MAX_ROWS]:
        span = None if row["blocks"] is None else Span.parse(row["blocks"])
        tokens = row["cache_tokens"]
        table.add_row(
            Text(_short(row["machine"]) + (" (relayed)" if row["relayed"] else "")),
            row["blocks"] or "none",
            bar(span, plan.layout.num_blocks),
            f"{row['decode_ms_per_block']:.2f}",
            f"{row['weights_gb']:.1f}",
            f"{row['memory_gb']:.1f}",
            "" if tokens is None else f"{tokens:,}",
        )
    table.add_section()
    table.add_row("hosts", "", hosts_line(plan.layout), "", "", "", "")
    return table


def _remarks(plan: Plan) -> Sequence[str]:
    remarks = []
    if len(plan.inventory.machines) > MAX_ROWS:
        remarks.append(f"{len(plan.inventory.machines) - MAX_ROWS} more machines: see --json")
    idle = [one.peer for one in plan.inventory.machines if one.peer not in plan.layout.spans]
    if idle:
        remarks.append(f"without blocks: {', '.join(map(_short, idle[:10]))}")
    return remarks


def _short(peer: str) -> str:
    """Names as they are; of a peer id its end."""
    return peer if len(peer) <= 24 else f"..{peer[-8:]}"


def milliseconds(seconds: float) -> str:
    """`12.3 ms`, or `never`."""
    return f"{1e3 * seconds:,.1f} ms" if seconds != float("inf") else "never"
