"""The optimal placement, by mixed-integer linear programming."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from swarm.errors import MemoryShortError
from swarm.routing.flow_program import FlowProblem, FlowSolution, solve
from swarm.routing.inventory import Inventory, Tables, Workload, tables
from swarm.routing.layout import Layout, Placement
from swarm.routing.network import Indices
from swarm.routing.placements.conservative import conservative_sizes, most_sessions
from swarm.routing.product_program import solve_products
from swarm.spans import Span

TIME_LIMIT_S = 30.0
MAX_CLIENTS = 4
"""More of them are taken as one, with the mean of their delays."""


def flow_problem(inventory: Inventory, workload: Workload) -> FlowProblem:
    """The objective is the mean time per decoded token, as in the paper's (13a)."""
    figures = tables(inventory, workload)
    hop_s = figures.decode_hop_s
    if len(hop_s) > MAX_CLIENTS:
        hop_s = hop_s.mean(axis=0, keepdims=True)
    return FlowProblem(
        num_blocks=inventory.model.num_blocks,
        memory=figures.memory,
        block_bytes=figures.block_bytes,
        cache_bytes=figures.cache_bytes,
        hop_s=hop_s,
        block_s=figures.decode_block_s,
        requests=[workload.at_once / len(hop_s)] * len(hop_s),
    )


def layout_cost(inventory: Inventory, layout: Layout, workload: Workload) -> FlowSolution:
    """The best routing of the workload's sessions over a layout that is given (a linear program):
    mean seconds per decoded token. Infinite when they do not fit."""
    options: list[Sequence[tuple[int, int]]] = []
    for machine in inventory.machines:
        span = layout.spans.get(machine.peer)
        options.append([(span.start, len(span))] if span is not None else [])
    return solve(flow_problem(inventory, workload), options)


class OptimalPlacement:
    """The boundary-flow program over all starts, with the numbers of blocks of CG-BP and of the
    incumbent.

    In a push chain it is optimal for the delays of `tables`. `notes` of the layout: `objective_s`,
    `bound_s` and `gap` (of the best found to the bound), `optimal` (0 or 1).
    """

    def __init__(
        self,
        incumbent: Placement,
        *,
        time_limit_s: float = TIME_LIMIT_S,
        smaller_caches: Sequence[float] = (),
        products: bool = False,
    ) -> None:
        """`incumbent`: what is kept when the solver finds nothing better in time;
        `smaller_caches`: shares of `R` for which machines may be sized as well, with more blocks
        and less cache; `products`: the paper's own program instead, for toys."""
        self._products = products
        self._incumbent = incumbent
        self._time_limit_s = time_limit_s
        self._shares = (1.0, *smaller_caches)

    def place(self, inventory: Inventory, workload: Workload) -> Layout:
        """Raises MemoryShortError."""
        figures = tables(inventory, workload)
        sessions = min(workload.at_once, most_sessions(inventory, figures))
        inventory.check_memory(workload, max(1, sessions))
        workload = replace(workload, sessions=sessions)
        problem = flow_problem(inventory, workload)
        first = self._incumbent.place(inventory, workload)
        if self._products:
            found = solve_products(problem, time_limit_s=self._time_limit_s)
        else:
            options = self._options(inventory, figures, sessions, first)
            found = solve(problem, options, time_limit_s=self._time_limit_s)
        cost = layout_cost(inventory, first, workload)
        objective_s, layout = cost.objective_s, first
        if found.objective_s < objective_s:
            objective_s = found.objective_s
            layout = _layout(inventory, found)
        if not np.isfinite(objective_s):
            raise MemoryShortError(
                f"no placement carries {sessions} sessions of {workload.session_tokens} tokens; "
                "ask for fewer, or add machines"
            )
        gap = (objective_s - found.bound_s) / objective_s if objective_s > 0 else 0.0
        notes = {
            "objective_s": objective_s,
            "bound_s": found.bound_s,
            "gap": max(0.0, gap),
            "optimal": float(found.optimal),
            "sessions": float(sessions),
        }
        return replace(layout, notes=notes)

    def _options(
        self, inventory: Inventory, figures: Tables, sessions: int, first: Layout
    ) -> list[list[tuple[int, int]]]:
        blocks = inventory.model.num_blocks
        sizes: list[Indices] = [
            conservative_sizes(inventory, figures, max(1, round(sessions * share))).blocks
            for share in self._shares
        ]
        options: list[list[tuple[int, int]]] = []
        for number, machine in enumerate(inventory.machines):
            counts = {int(size[number]) for size in sizes}
            if machine.peer in first.spans:
                counts.add(len(first.spans[machine.peer]))
            options.append(
                [
                    (start, count)
                    for count in sorted(counts - {0})
                    for start in range(blocks - count + 1)
                ]
            )
        return options


def _layout(inventory: Inventory, found: FlowSolution) -> Layout:
    spans = {
        inventory.machines[number].peer: Span(start, start + count)
        for number, (start, count) in found.starts.items()
    }
    return Layout(inventory.model.num_blocks, spans)
