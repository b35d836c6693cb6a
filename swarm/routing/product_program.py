"""The program of Sun et al. as they write it (arXiv 2512.21884, (9) to (13f)); for toys only.

Every request has its own copy of the flow, and the products of placement and flow are bounded by
four rows each, so that it is proved optimal for hardly more than five machines. It is what the
boundary-flow program (`swarm.routing.flow_program`) is held to.
"""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from swarm.errors import UsageError
from swarm.routing.flow_program import FlowProblem, FlowSolution

MAX_MACHINES = 6
_SOURCE, _SINK = -1, -2


class _Rows:
    """Sparse rows, one at a time."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, float]] = []
        self._lower: list[float] = []
        self._upper: list[float] = []

    def add(self, terms: Mapping[int, float], lower: float, upper: float) -> None:
        row = len(self._lower)
        self._entries.extend((row, column, value) for column, value in terms.items())
        self._lower.append(lower)
        self._upper.append(upper)

    def constraint(self, variables: int) -> LinearConstraint:
        row, column, value = zip(*self._entries, strict=True)
        matrix = coo_matrix((value, (row, column)), shape=(len(self._lower), variables))
        return LinearConstraint(matrix.tocsr(), self._lower, self._upper)


class _Numbers:
    """The columns: `a` and `m` of each machine, then `f`, `alpha`, `beta`, `gamma`, `delta` of each
    arc and request."""

    def __init__(self, machines: int, requests: int) -> None:
        inner = [(i, j) for i in range(machines) for j in range(machines) if i != j]
        ends = [(_SOURCE, j) for j in range(machines)] + [(i, _SINK) for i in range(machines)]
        self.arcs = [*inner, *ends]
        self.machines = machines
        self.count = 2 * machines + 5 * requests * len(self.arcs)
        self._arc = {arc: at for at, arc in enumerate(self.arcs)}

    def first(self, machine: int) -> int:
        return machine

    def held(self, machine: int) -> int:
        return self.machines + machine

    def flow(self, request: int, arc: tuple[int, int]) -> int:
        at = request * len(self.arcs) + self._arc[arc]
        return 2 * self.machines + 5 * at

    def product(self, request: int, arc: tuple[int, int], which: int) -> int:
        """`which`: 1 to 4: `a_j f`, `a_i f`, `m_j f`, `m_i f`."""
        return self.flow(request, arc) + which


def solve_products(problem: FlowProblem, *, time_limit_s: float | None = None) -> FlowSolution:
    """The optimum over all placements; each client's requests must be whole.

    Raises UsageError if they are not, and for more than `MAX_MACHINES` machines.
    """
    problem = problem.in_blocks()
    machines, blocks = len(problem.memory), problem.num_blocks
    if machines > MAX_MACHINES:
        raise UsageError(
            f"{machines} machines are too many for the paper's program (at most {MAX_MACHINES}); "
            "use the boundary-flow program"
        )
    if not sum(problem.requests) > 0 or any(share != round(share) for share in problem.requests):
        raise UsageError(
            f"{sum(problem.requests):g} requests of {len(problem.requests)} clients are no whole "
            "number for each, which the paper's program needs; ask for a multiple, or use the "
            "boundary-flow program"
        )
    clients = [client for client, share in enumerate(problem.requests) for _ in range(round(share))]
    at = _Numbers(machines, len(clients))
    objective = np.zeros(at.count)
    rows = _Rows()
    for machine in range(machines):
        rows.add({at.first(machine): 1.0, at.held(machine): 1.0}, -np.inf, blocks + 1)
    room: list[dict[int, float]] = [
        {at.held(machine): problem.block_bytes} for machine in range(machines)
    ]
    for request, client in enumerate(clients):
        for arc in at.arcs:
            if arc[1] != _SINK:
                hop = arc[1]
                objective[at.flow(request, arc)] += problem.hop_s[client, hop]
                for which, sign in ((1, 1.0), (3, 1.0), (2, -1.0), (4, -1.0)):
                    column = at.product(request, arc, which)
                    objective[column] += sign * problem.block_s[hop]
                    room[hop][column] = sign * problem.cache_bytes
            _bind_products(rows, at, request, arc, blocks)
        _conserve(rows, at, request)
    for machine in range(machines):
        rows.add(room[machine], -np.inf, problem.memory[machine])
    result = milp(
        objective,
        constraints=rows.constraint(at.count),
        integrality=_integrality(at, len(clients)),
        bounds=_bounds(at, blocks),
        options={} if time_limit_s is None else {"time_limit": time_limit_s},
    )
    count = len(clients)
    if result.x is None:
        return FlowSolution({}, np.inf, np.inf if result.status == 2 else -np.inf, False)
    starts = {
        machine: (
            round(result.x[at.first(machine)]) - 1,
            round(result.x[at.held(machine)]),
        )
        for machine in range(machines)
        if round(result.x[at.held(machine)]) > 0
    }
    bound = float(result.mip_dual_bound) / count
    return FlowSolution(starts, float(result.fun) / count, bound, result.status == 0)


def _bind_products(
    rows: _Rows, at: _Numbers, request: int, arc: tuple[int, int], blocks: int
) -> None:
    """(9) to (12), (13e), (13f). The source has `a = 0, m = 1`, the sink `a = L + 1, m = 1`."""
    before, after = arc
    flow = at.flow(request, arc)
    ends = {
        1: at.first(after) if after != _SINK else float(blocks + 1),
        2: at.first(before) if before != _SOURCE else 0.0,
        3: at.held(after) if after != _SINK else 1.0,
        4: at.held(before) if before != _SOURCE else 1.0,
    }
    for which, factor in ends.items():
        product = at.product(request, arc, which)
        if isinstance(factor, float):
            rows.add({product: 1.0, flow: -factor}, 0.0, 0.0)
            continue
        most = float(blocks)
        rows.add({product: 1.0, flow: -most}, -np.inf, 0.0)
        rows.add({product: 1.0, factor: -1.0}, -np.inf, 0.0)
        rows.add({product: 1.0, factor: -1.0, flow: -most}, -most, np.inf)
    starts = {at.product(request, arc, 1): 1.0}
    reached = {at.product(request, arc, 2): 1.0, at.product(request, arc, 4): 1.0}
    if before == _SOURCE:
        rows.add(starts, -np.inf, 1.0)
    else:
        rows.add({**starts, at.first(before): -1.0, at.held(before): -1.0}, -np.inf, 0.0)
    if after == _SINK:
        rows.add(reached, -np.inf, blocks + 1.0)
    else:
        rows.add({**reached, at.first(after): -1.0, at.held(after): -1.0}, -np.inf, -1.0)


def _conserve(rows: _Rows, at: _Numbers, request: int) -> None:
    """(13c): one unit from the source to the sink."""
    for node in (_SOURCE, _SINK, *range(at.machines)):
        terms: dict[int, float] = {}
        for arc in at.arcs:
            if node in arc:
                terms[at.flow(request, arc)] = 1.0 if arc[0] == node else -1.0
        supply = {_SOURCE: 1.0, _SINK: -1.0}.get(node, 0.0)
        rows.add(terms, supply, supply)


def _integrality(at: _Numbers, requests: int) -> list[int]:
    return [1] * (2 * at.machines) + [1, 0, 0, 0, 0] * (requests * len(at.arcs))


def _bounds(at: _Numbers, blocks: int) -> Bounds:
    placed = 2 * at.machines
    lower = np.zeros(at.count)
    lower[: at.machines] = 1.0
    upper = np.full(at.count, blocks + 1.0)
    upper[:placed] = blocks
    upper[placed::5] = 1.0
    return Bounds(lower, upper)
