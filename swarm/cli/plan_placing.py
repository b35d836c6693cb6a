"""What `swarm-plan place` does once its options are read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from random import Random
from typing import Any

import numpy as np

from swarm.errors import SwarmError
from swarm.routing.inventory import Inventory, Workload
from swarm.routing.layout import Layout
from swarm.routing.placements.optimum import OptimalPlacement, layout_cost
from swarm.routing.placements.parallax import ParallaxPlacement
from swarm.routing.planned import Expectation, expect
from swarm.routing.policies import placement_named
from swarm.spans import PeerId, Span

MAX_MACHINES = 40
"""Beyond so many, the optimum is not looked for unless a time for it is given."""
TIME_LIMIT_S = 30.0


@dataclass(frozen=True)
class Optimum:
    """How far a layout is from the best one."""

    cost_s: float
    """Mean time per decoded token of the workload's sessions over the layout."""
    bound_s: float
    """No placement has less (with the numbers of blocks that were tried)."""
    best_s: float
    """Of the best one that was found."""
    proved: bool
    """Whether the best one is proved to be optimal."""

    @property
    def gap(self) -> float:
        """Of the layout to the bound, as a part of its cost."""
        if not isfinite(self.cost_s) or self.cost_s <= 0:
            return float("inf")
        return max(0.0, 1 - self.bound_s / self.cost_s)


@dataclass(frozen=True)
class Plan:
    """One placement and what it is expected to deliver."""

    name: str
    inventory: Inventory
    workload: Workload
    layout: Layout
    expected: Expectation
    optimum: Optimum | None = None


class _Given:
    """A placement that is already there."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def place(self, inventory: Inventory, workload: Workload) -> Layout:
        return self._layout


def make_plan(
    name: str, inventory: Inventory, workload: Workload, seed: int, now: Layout | None = None
) -> Plan:
    """By the placement of this name; `parallax` changes the layout that there is `now` only if it
    has to be rebalanced.

    Raises MemoryShortError with the GB that are missing, UsageError for an unknown name.
    """
    inventory.check_memory(workload, 1)
    placement = placement_named(name, Random(seed))
    if now is not None and isinstance(placement, ParallaxPlacement):
        layout = placement.adjust(inventory, workload, now)
    else:
        layout = placement.place(inventory, workload)
    return Plan(name, inventory, workload, layout, expect(inventory, layout, workload))


def with_optimum(plan: Plan, time_limit_s: float) -> Plan:
    """The plan with its gap; without, where the workload's sessions find no room at all."""
    optimal = OptimalPlacement(_Given(plan.layout), time_limit_s=time_limit_s)
    try:
        notes = optimal.place(plan.inventory, plan.workload).notes
    except SwarmError:
        return plan
    workload = replace(plan.workload, sessions=round(notes["sessions"]))
    cost = layout_cost(plan.inventory, plan.layout, workload)
    found = Optimum(
        cost.objective_s, notes["bound_s"], notes["objective_s"], bool(notes["optimal"])
    )
    return replace(plan, optimum=found)


def plan_fields(plan: Plan) -> dict[str, Any]:
    """The plan as `--json` prints it; times in seconds, what is infinite is None."""
    hosts = plan.layout.hosts()
    return {
        "placement": plan.name,
        "model": plan.inventory.model.name,
        "blocks_total": plan.layout.num_blocks,
        "machines": machine_rows(plan),
        "missing": [str(span) for span in plan.layout.missing()],
        "least_hosts": plan.expected.least_hosts,
        "mean_hosts": float(np.mean(hosts)),
        "ttft_s": _finite(plan.expected.ttft_s),
        "tpot_s": _finite(plan.expected.tpot_s),
        "request_s": _finite(plan.expected.request_s),
        "tokens_per_s": _finite(plan.expected.tokens_per_s),
        "sessions": plan.expected.sessions,
        "optimum": _optimum_fields(plan.optimum),
        "notes": {name: _finite(value) for name, value in plan.layout.notes.items()},
    }


def machine_rows(plan: Plan) -> list[dict[str, Any]]:
    """One for each machine, in the order of its first block; those without blocks last."""
    rows = []
    model = plan.inventory.model
    for machine in plan.inventory.machines:
        span = plan.layout.spans.get(machine.peer)
        blocks = 0 if span is None else len(span)
        room = machine.memory_bytes - blocks * model.block_bytes
        tokens = room / (blocks * model.cache_bytes_per_token or np.inf) if blocks else 0.0
        rows.append(
            {
                "machine": machine.peer,
                "blocks": None if span is None else str(span),
                "memory_gb": machine.memory_bytes / 1e9,
                "weights_gb": blocks * model.block_bytes / 1e9,
                "cache_tokens": int(tokens) if model.cache_bytes_per_token else None,
                "decode_ms_per_block": 1e3 * (machine.speed.decode_s(1) - machine.speed.pass_s),
                "relayed": machine.relayed,
            }
        )
    return sorted(rows, key=lambda row: _order(plan.layout.spans, row["machine"]))


def _order(spans: Mapping[PeerId, Span], peer: PeerId) -> tuple[int, int, str]:
    span = spans.get(peer)
    return (1 << 30, 0, peer) if span is None else (span.start, span.end, peer)


def _optimum_fields(optimum: Optimum | None) -> dict[str, Any] | None:
    if optimum is None:
        return None
    return {
        "token_s": _finite(optimum.cost_s),
        "bound_token_s": _finite(optimum.bound_s),
        "best_token_s": _finite(optimum.best_s),
        "gap": _finite(optimum.gap),
        "proved": optimum.proved,
    }


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None
