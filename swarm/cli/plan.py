"""`swarm-plan`: who should host which blocks, and what a swarm would do, in advance."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from swarm.cli.arguments import Version, repeat_address_options, split_addresses
from swarm.cli.errors import EXIT_USAGE, run, run_program, say_error
from swarm.cli.interrupts import end_on_sigterm
from swarm.errors import UsageError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Plan a swarm: who hosts what, and what users can expect.",
)

InventoryFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="INVENTORY.yaml", help="Model, machines, clients, network.", show_default=False
    ),
]
Peers = Annotated[
    list[str] | None,
    typer.Option(
        help="Plan for a live swarm instead: addresses of any members.",
        metavar="ADDR...",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of all that is drawn at random.")]
Requests = Annotated[
    int | None,
    typer.Option(min=1, help="How many requests. Default: the inventory's.", show_default=False),
]
Rate = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Requests a second; 0: each client asks again when it has its answer. Default: the"
        " inventory's.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, no tables.")]
LivePromptTokens = Annotated[
    int | None,
    typer.Option(min=0, help="With --peers: of a request. Default: 128.", show_default=False),
]
LiveOutputTokens = Annotated[
    int | None,
    typer.Option(min=1, help="With --peers: of a request. Default: 128.", show_default=False),
]
LiveSessions = Annotated[
    int | None,
    typer.Option(min=1, help="With --peers: how many at once. Default: 8.", show_default=False),
]
LIVE_WORKLOAD = {"prompt_tokens": 128, "output_tokens": 128, "sessions": 8}
"""What is asked of a live swarm unless an option says otherwise; an inventory has its own."""


@app.callback()
def options(version: Version = False) -> None: ...


@app.command()
def place(
    inventory: InventoryFile = None,
    peers: Peers = None,
    placement: Annotated[
        str,
        typer.Option(help="best, petals, cg-bp, gbp-cr, parallax, optimum or optimum-products."),
    ] = "best",
    time_limit: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds to look for the optimum. Default: 30, and 0 with more than 40 machines.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="With --peers: a model's name or folder, if the swarm's own name is unknown here.",
            show_default=False,
        ),
    ] = None,
    prompt_tokens: LivePromptTokens = None,
    output_tokens: LiveOutputTokens = None,
    sessions: LiveSessions = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Show who should host which blocks, and what to expect of it.

    The machines come from a file or from a live swarm (--peers); nothing is changed there.
    """

    def command() -> None:
        from swarm.cli.plan_placing import (
            MAX_MACHINES,
            TIME_LIMIT_S,
            make_plan,
            plan_fields,
            with_optimum,
        )
        from swarm.routing.inventory import Workload

        end_on_sigterm()
        now = None
        options = {
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "sessions": sessions,
        }
        asked = {name: value for name, value in options.items() if value is not None}
        if peers:
            if inventory is not None:
                raise UsageError("give an inventory or --peers, not both")
            from swarm.cli.plan_live import live_plan

            wanted = Workload(**(LIVE_WORKLOAD | asked))
            now = live_plan(split_addresses(peers), model, wanted)
            found, workload = now.inventory, now.workload
        else:
            if asked or model is not None:
                raise UsageError(
                    "--model, --prompt-tokens, --output-tokens and --sessions are for --peers; an"
                    " inventory says these itself"
                )
            from swarm.cli.plan_inventory import read_plan

            file = read_plan(_given(inventory))
            found, workload = file.inventory(), file.workload.workload()
        plan = make_plan(placement, found, workload, seed, now.layout if now else None)
        limit = time_limit
        if limit is None:
            limit = TIME_LIMIT_S if len(found.machines) <= MAX_MACHINES else 0.0
        plans = [one for one in (now, plan) if one is not None]
        if limit > 0:
            plans = [with_optimum(one, limit) for one in plans]
        if as_json:
            _write_json([plan_fields(one) for one in plans])
            return
        from swarm.cli.plan_picture import print_plan

        for one in plans:
            print_plan(one)

    _run(command)


@app.command()
def simulate(
    inventory: InventoryFile = None,
    placement: Annotated[str, typer.Option(help="As for `place`.")] = "best",
    router: Annotated[
        str,
        typer.Option(help="two-choices, petals, ws-rr, threshold, parallax, jffc or round-robin."),
    ] = "two-choices",
    requests: Requests = None,
    rate: Rate = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Serve the inventory's workload on a virtual clock, with its churn and its faults.

    The same inventory, policy and seed give the same figures.
    """

    def command() -> None:
        from swarm.cli.plan_inventory import read_plan
        from swarm.cli.plan_results import result_fields, result_lines, result_table
        from swarm.cli.plan_simulating import Options, run_policies
        from swarm.simulator.results import Result

        end_on_sigterm()
        file = read_plan(_given(inventory))
        policy = f"{placement}+{router}"
        result = run_policies(file, [policy], Options(requests, rate, seed))[policy]
        assert isinstance(result, Result)
        if as_json:
            typer.echo(json.dumps(result_fields(policy, result), indent=1))
            return
        from swarm.cli.terminal import table_console

        table_console().print(result_table(policy, result))
        for line in result_lines(result):
            typer.echo(line)

    _run(command)


@app.command()
def compare(
    inventory: InventoryFile = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="May be given several times. Default: the pairs of the papers, and ours.",
            metavar="PLACEMENT+ROUTER",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="A text file for the plot. Default: below the table.", metavar="FILE"),
    ] = None,
    requests: Requests = None,
    rate: Rate = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Serve the same workload with every policy: one table, and one plot."""

    def command() -> None:
        from swarm.cli.plan_inventory import read_plan
        from swarm.cli.plan_results import (
            comparison_table,
            result_fields,
            text_plot,
            write_plot,
        )
        from swarm.cli.plan_simulating import POLICIES, Options, run_policies

        end_on_sigterm()
        file = read_plan(_given(inventory))
        options = Options(requests, rate, seed)
        found = run_policies(file, tuple(dict.fromkeys(policy or POLICIES)), options)
        if plot is not None:
            write_plot(found, plot)
        if as_json:
            fields = [result_fields(name, result) for name, result in found.items()]
            typer.echo(json.dumps({"policies": fields}, indent=1))
            return
        from swarm.cli.terminal import table_console

        table_console().print(comparison_table(found))
        if plot is None:
            typer.echo(text_plot(found))

    _run(command)


def _given(inventory: Path | None) -> Path:
    if inventory is None:
        raise UsageError("no machines to plan with; give an INVENTORY.yaml, or --peers ADDR")
    return inventory


def _write_json(plans: list[dict[str, object]]) -> None:
    """The plan; of a live swarm the one that it has now first."""
    fields = plans[-1] if len(plans) == 1 else {**plans[-1], "now": plans[0]}
    typer.echo(json.dumps(fields, indent=1))


def _run(command: Callable[[], None]) -> None:
    """Each mistake in a file gets a line of its own."""

    def checked() -> None:
        try:
            command()
        except UsageError as error:
            # Of PlanMistakesError, whose module is slow to import: other commands do without it.
            lines = getattr(error, "lines", ())
            if not lines:
                raise
            for line in lines:
                say_error(line)
            raise SystemExit(EXIT_USAGE) from None

    run(checked)


def main() -> None:
    """Entry point of the program."""
    run_program(app, "swarm-plan", repeat_address_options(sys.argv[1:]) or ["--help"])
