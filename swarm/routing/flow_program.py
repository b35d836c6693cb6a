"""The boundary-flow program: placement and routing together, as a mixed-integer linear program.

In a relay chain the cost of a hop does not depend on the hop before it, so all that matters between
two hops is the boundary that was reached. Then the products of Sun et al. (arXiv 2512.21884, (13a)
to (13f)) vanish, and the number of requests is only a right-hand side:

- `x[j, s, k]` binary: machine `j` hosts `k` blocks from `s`; at most one for each machine;
- `y[c, j, s, k, b]`: requests of client `c` that enter it at boundary `b` and leave at `s + k`, at
  a cost of `t_cj + tau_j (s + k - b)`; flows balance at every boundary;
- `sum_b,c y <= R x`, and `s_m k x + s_c sum (s + k - b) y <= M_j`.

Flows may be fractions of requests (the chains of a large `R`), so the value is a lower bound of
every placement with the given numbers of blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from swarm.errors import UsageError
from swarm.routing.network import Floats, Indices


@dataclass(frozen=True)
class FlowProblem:
    """`n` machines, `c` clients; seconds, and bytes (or any other unit, if all are in it)."""

    num_blocks: int
    memory: Floats
    block_bytes: float
    cache_bytes: float
    hop_s: Floats
    """`[c, n]`."""
    block_s: Floats
    """`[n]`."""
    requests: Sequence[float]
    """Of each client; its share of `R`."""

    def in_blocks(self) -> "FlowProblem":
        """The same with a block as the unit of memory: in bytes, or in GB of tiny models, what a
        solver takes for nothing would be as large as a machine."""
        return replace(
            self,
            memory=self.memory / self.block_bytes,
            block_bytes=1.0,
            cache_bytes=self.cache_bytes / self.block_bytes,
        )


@dataclass(frozen=True)
class FlowSolution:
    """What the solver found."""

    starts: Mapping[int, tuple[int, int]]
    """Machine -> `(start, blocks)`; empty if there is no incumbent."""
    objective_s: float
    """Mean seconds a request; infinite without an incumbent."""
    bound_s: float
    """No placement (with these numbers of blocks) is better."""
    optimal: bool


@dataclass(frozen=True)
class _Columns:
    """One row for each `y`."""

    option: Indices
    """Which `x`."""
    client: Indices
    enter: Indices
    leave: Indices
    cost_s: Floats


def solve(
    problem: FlowProblem,
    options: Sequence[Sequence[tuple[int, int]]],
    *,
    time_limit_s: float | None = None,
    gap: float = 1e-4,
    whole_requests: bool = False,
) -> FlowSolution:
    """`options`: for each machine the `(start, blocks)` that it may take; a single one fixes it.
    `whole_requests`: no request is split.

    With HiGHS (scipy). When time runs out, the incumbent and the bound so far. Raises UsageError
    where nobody asks for anything.
    """
    total = sum(problem.requests)
    if not total > 0:
        raise UsageError(f"{total:g} requests; a placement is for at least one")
    problem = problem.in_blocks()
    if not any(options):
        return FlowSolution({}, np.inf, np.inf, True)
    machine = np.array([number for number, own in enumerate(options) for _ in own], dtype=np.intp)
    placed = np.array([choice for own in options for choice in own], dtype=np.intp).reshape(-1, 2)
    columns = _columns(problem, machine, placed)
    fixed = all(len(own) <= 1 for own in options)
    rows, lower, upper = _rows(problem, machine, placed, columns)
    x_count, y_count = len(machine), len(columns.option)
    upper_x = np.ones(x_count)
    integral = np.concatenate(
        [np.full(x_count, 0 if fixed else 1), np.full(y_count, int(whole_requests))]
    )
    result = milp(
        np.concatenate([np.zeros(x_count), columns.cost_s]),
        constraints=LinearConstraint(rows, lower, upper),
        integrality=integral,
        bounds=Bounds(
            np.concatenate([upper_x if fixed else np.zeros(x_count), np.zeros(y_count)]),
            np.concatenate([upper_x, np.full(y_count, np.inf)]),
        ),
        options={
            "mip_rel_gap": gap,
            **({} if time_limit_s is None else {"time_limit": time_limit_s}),
        },
    )
    bound = -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound)
    if result.x is None:
        infeasible = result.status == 2
        return FlowSolution({}, np.inf, np.inf if infeasible else bound / total, infeasible)
    chosen = {
        int(machine[at]): (int(placed[at, 0]), int(placed[at, 1]))
        for at in np.flatnonzero(result.x[:x_count] > 0.5)
    }
    objective = float(result.fun)
    if not integral.any():
        bound = objective
    return FlowSolution(chosen, objective / total, bound / total, result.status == 0)


def _columns(problem: FlowProblem, machine: Indices, placed: Indices) -> _Columns:
    lengths = placed[:, 1]
    option = np.repeat(np.arange(len(machine)), lengths)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    enter = placed[option, 0] + np.arange(len(option)) - first
    leave = placed[option, 0] + placed[option, 1]
    clients = len(problem.requests)
    client = np.repeat(np.arange(clients), len(option))
    option, enter, leave = (np.tile(column, clients) for column in (option, enter, leave))
    server = machine[option]
    cost = problem.hop_s[client, server] + problem.block_s[server] * (leave - enter)
    return _Columns(option, client, enter, leave, cost)


def _rows(
    problem: FlowProblem, machine: Indices, placed: Indices, columns: _Columns
) -> tuple[coo_matrix, Floats, Floats]:
    """All constraints: one span a machine, flows balance, only where hosted, memory."""
    x_count, y_count = len(machine), len(columns.option)
    at_y = x_count + np.arange(y_count)
    blocks, clients, total = problem.num_blocks, len(problem.requests), sum(problem.requests)
    machines = len(problem.memory)
    balance = machines
    hosted = balance + clients * (blocks + 1)
    room = hosted + x_count * clients
    count = room + machines
    ones = np.ones(y_count)
    base = balance + columns.client * (blocks + 1)
    host_row = hosted + columns.client * x_count + columns.option
    each_client = np.repeat(np.arange(clients), x_count)
    every_x = np.tile(np.arange(x_count), clients)
    requests = np.asarray(problem.requests, dtype=np.float64)
    used = columns.leave - columns.enter
    entries = [
        (machine, np.arange(x_count), np.ones(x_count)),
        (base + columns.enter, at_y, ones),
        (base + columns.leave, at_y, -ones),
        (host_row, at_y, ones),
        (hosted + each_client * x_count + every_x, every_x, -requests[each_client]),
        (room + machine, np.arange(x_count), problem.block_bytes * placed[:, 1]),
        (room + machine[columns.option], at_y, problem.cache_bytes * used),
    ]
    row, column, value = (np.concatenate(part) for part in zip(*entries, strict=True))
    lower, upper = np.full(count, -np.inf), np.zeros(count)
    upper[:machines] = 1.0
    lower[balance:hosted] = 0.0
    for client, share in enumerate(requests):
        entering = balance + client * (blocks + 1)
        lower[entering] = upper[entering] = share
        lower[entering + blocks] = upper[entering + blocks] = -share
    upper[room:] = problem.memory
    # Rows of a machine that cannot run out of room only slow the solver.
    widest = np.zeros(machines, dtype=np.float64)
    np.maximum.at(
        widest, machine, placed[:, 1] * (problem.block_bytes + problem.cache_bytes * total)
    )
    keep = np.ones(count, dtype=np.bool_)
    keep[room:] = widest > problem.memory * (1 + 1e-12)
    matrix = coo_matrix((value, (row, column)), shape=(count, x_count + y_count)).tocsr()[keep]
    return matrix, lower[keep], upper[keep]
