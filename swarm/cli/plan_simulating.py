"""What `swarm-plan simulate` and `swarm-plan compare` run once their options are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from swarm.cli.plan_inventory import PlanFile
from swarm.errors import SwarmError, UsageError
from swarm.routing.policies import PLACEMENTS, ROUTERS, placement_named
from swarm.simulator.results import Result
from swarm.simulator.simulation import simulate

POLICIES = (
    "petals+petals",
    "cg-bp+ws-rr",
    "cg-bp+threshold",
    "gbp-cr+jffc",
    "parallax+parallax",
    "parallax+round-robin",
    "best+two-choices",
)
"""Placement and router: the papers' own pairs, and ours last."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    requests: int | None
    rate_per_s: float | None
    seed: int


def split_policy(policy: str) -> tuple[str, str]:
    """Placement and router. Raises UsageError for names that nobody knows."""
    placement, plus, router = policy.partition("+")
    if not plus:
        raise UsageError(f"{policy!r} is not a policy; write PLACEMENT+ROUTER, as {POLICIES[-1]}")
    for what, name, known in (("placement", placement, PLACEMENTS), ("router", router, ROUTERS)):
        if name not in known:
            raise UsageError(f"no {what} is called {name!r}; take one of {', '.join(known)}")
    return placement, router


def run_policy(
    file: PlanFile, policy: str, options: Options, on_progress: Callable[[int, int], None]
) -> Result:
    """Place, then simulate. Raises MemoryShortError if the model does not fit."""
    placement, router = split_policy(policy)
    inventory, workload = file.inventory(), file.workload.workload(options.rate_per_s)
    inventory.check_memory(workload, 1)
    layout = placement_named(placement, Random(options.seed)).place(inventory, workload)
    scenario = file.scenario(
        inventory,
        layout,
        requests=options.requests,
        rate_per_s=options.rate_per_s,
        seed=options.seed,
    )
    return simulate(scenario, router, on_progress)


def run_policies(
    file: PlanFile, policies: Sequence[str], options: Options
) -> dict[str, Result | SwarmError]:
    """Each of them in the same scenario; one that cannot place the model says why instead."""
    for policy in policies:
        split_policy(policy)
    found: dict[str, Result | SwarmError] = {}
    with progress_bar() as bar:
        for policy in policies:
            task = bar.add_task(policy, total=options.requests or file.simulation.requests)
            try:
                found[policy] = run_policy(file, policy, options, partial(_show, bar, task))
            except SwarmError as error:
                found[policy] = error
    errors = [one for one in found.values() if isinstance(one, SwarmError)]
    if len(errors) == len(found):
        raise errors[0]
    return found


def progress_bar() -> Progress:
    """On standard error, and only on a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _show(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)
