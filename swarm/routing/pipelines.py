"""Parallax' phase 1 for one region: how many pipelines, who is in them, who takes how many layers.

arXiv 2509.26182; each machine hosts one contiguous stage of one pipeline.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.errors import UsageError

MAX_STATES = 30_000
"""Of the dynamic program after one machine; beyond, pipelines are filled greedily."""
_SAME = 1e-12
"""Relative: figures that differ by less are equal, as they would be without rounding."""


@dataclass(frozen=True)
class StageCapacity:
    """How many layers a machine holds, by its place in a pipeline."""

    inner: int
    first: int
    """Beside the embedding."""
    last: int
    """Beside the head."""
    only: int
    """Beside both (one matrix, if they are tied)."""


def stage_capacity(
    weight_bytes: float, layer_bytes: float, embedding_bytes: float = 0.0, *, tied: bool = False
) -> StageCapacity:
    """`weight_bytes`: what the machine gives to weights. Raises UsageError for a layer without."""
    if not layer_bytes > 0:
        raise UsageError(f"a layer of {layer_bytes} bytes; it has weights")

    def holds(reserved: float) -> int:
        return max(0, int((weight_bytes - reserved) // layer_bytes))

    both = embedding_bytes * (1 if tied else 2)
    return StageCapacity(holds(0.0), holds(embedding_bytes), holds(embedding_bytes), holds(both))


def pipeline_score(
    pipelines: int, stages: int, *, alpha: float, compute_s: float, rtt_s: float
) -> float:
    """`Z(k) = k^alpha / (T_comp + (s*(k) / k) r_RTT)`: throughput over latency."""
    latency_s = compute_s + stages / pipelines * rtt_s
    return float(pipelines**alpha) / latency_s if latency_s > 0 else math.inf


@dataclass(frozen=True)
class Pipelines:
    """Which machines (by number) form pipelines, and the least stages for each number of them."""

    members: tuple[tuple[int, ...], ...]
    stages: tuple[float, ...]
    """`s*(k)` for `k = 1, 2 ...`; infinite where `k` pipelines cannot be."""


_State = tuple[tuple[int, ...], int]
"""Open residuals in ascending order, and how many pipelines are finished."""


@dataclass(frozen=True)
class _Step:
    cost: int
    before: _State
    residual: int
    """Of the pipeline that the machine joined (0: it began one; -1: it was skipped)."""


def plan_pipelines(
    capacities: Sequence[StageCapacity],
    layers: int,
    *,
    alpha: float = 2.0,
    compute_s: float = 0.0,
    rtt_s: float = 1.0,
) -> Pipelines:
    """The `k` with the highest `Z(k)` (the smaller one on ties), each with the fewest stages.

    The machines are taken by descending capacity, whatever their order. All `k` come from one
    dynamic program over (open residuals, finished): skip a machine, put it into an open pipeline
    or begin one with it. A machine alone reserves for embedding and head. Raises UsageError if they
    hold no pipeline at all.
    """
    if layers < 1:
        raise UsageError(f"{layers} layers; a model has at least one")
    order = sorted(range(len(capacities)), key=lambda number: (-capacities[number].inner, number))
    sizes = [capacities[number] for number in order]
    steps = _explore(sizes, layers)
    if steps is None:
        members = _fill_greedily(sizes, layers)
        found = [math.inf] * len(members)
        if found:
            found[-1] = sum(map(len, members))
    else:
        most = min(len(sizes), sum(size.inner for size in sizes) // layers)
        last = steps[-1]
        found = [
            last[(), count].cost if ((), count) in last else math.inf
            for count in range(1, most + 1)
        ]
        members = []
    scores = {
        count: pipeline_score(count, int(cost), alpha=alpha, compute_s=compute_s, rtt_s=rtt_s)
        for count, cost in enumerate(found, start=1)
        if math.isfinite(cost)
    }
    if not scores:
        raise UsageError(f"the machines hold no pipeline of {layers} layers")
    if steps is not None:
        enough = max(scores.values()) * (1 - _SAME)
        chosen = min(count for count, score in scores.items() if score >= enough)
        members = _trace(steps, sizes, chosen)
    return Pipelines(
        tuple(tuple(order[position] for position in chain) for chain in members), tuple(found)
    )


def _explore(sizes: Sequence[StageCapacity], layers: int) -> list[dict[_State, _Step]] | None:
    """For each number of machines, the cheapest way to each state; None if there are too many."""
    suffix = [0] * (len(sizes) + 1)
    for position in range(len(sizes) - 1, -1, -1):
        suffix[position] = suffix[position + 1] + sizes[position].inner
    start: _State = ((), 0)
    steps: list[dict[_State, _Step]] = [{start: _Step(0, start, -1)}]
    for position, size in enumerate(sizes):
        states: dict[_State, _Step] = {}
        for state, step in steps[-1].items():
            for after, residual in _moves(state, size, layers):
                if sum(after[0]) > suffix[position + 1]:
                    continue
                cost = step.cost + (residual >= 0)
                known = states.get(after)
                # Of equals the one that was reached with larger machines: it skips this one.
                if known is None or (cost, residual) < (known.cost, known.residual):
                    states[after] = _Step(cost, state, residual)
        if len(states) > MAX_STATES:
            return None
        steps.append(states)
    return steps


def _moves(state: _State, size: StageCapacity, layers: int) -> list[tuple[_State, int]]:
    open_ones, finished = state
    moves: list[tuple[_State, int]] = [(state, -1)]
    for residual in sorted(set(open_ones)):
        rest = list(open_ones)
        rest.remove(residual)
        left = residual - size.inner
        if left <= 0:
            left = residual - size.last
        if left <= 0:
            moves.append(((tuple(rest), finished + 1), residual))
        elif size.inner > 0:
            # It closes the pipeline only without the head: one layer is left for another.
            left = max(left, residual - size.inner)
            moves.append(((tuple(sorted([*rest, max(1, left)])), finished), residual))
    if size.only >= layers:
        moves.append(((open_ones, finished + 1), 0))
    elif size.first > 0:
        left = max(1, layers - size.first)
        moves.append(((tuple(sorted([*open_ones, left])), finished), 0))
    return moves


def _trace(
    steps: Sequence[dict[_State, _Step]], sizes: Sequence[StageCapacity], count: int
) -> list[list[int]]:
    """The members of each pipeline, in the order in which they joined."""
    state: _State = ((), count)
    taken: list[tuple[int, _State, _State, int]] = []
    for position in range(len(sizes) - 1, -1, -1):
        step = steps[position + 1][state]
        if step.residual >= 0:
            taken.append((position, step.before, state, step.residual))
        state = step.before
    open_ones: list[tuple[int, list[int]]] = []
    finished: list[list[int]] = []
    for position, before, after, residual in reversed(taken):
        if residual == 0:
            members = [position]
        else:
            at = next(i for i, one in enumerate(open_ones) if one[0] == residual)
            members = [*open_ones.pop(at)[1], position]
        if after[1] > before[1]:
            finished.append(members)
        else:
            rest = list(before[0])
            if residual:
                rest.remove(residual)
            opened = list(after[0])
            for value in rest:
                opened.remove(value)
            open_ones.append((opened[0], members))
    return finished


def _fill_greedily(sizes: Sequence[StageCapacity], layers: int) -> list[list[int]]:
    """Parallax' greedy allocator: the largest machines first, one pipeline after another."""
    free = list(range(len(sizes)))
    pipelines: list[list[int]] = []
    while True:
        members: list[int] = []
        left = layers
        for position in free:
            size = sizes[position]
            if (not members and size.only >= left) or (members and size.last >= left):
                left = 0
            else:
                held = size.inner if members else size.first
                if held <= 0:
                    continue
                left = max(1, left - held)
            members.append(position)
            if left <= 0:
                break
        if left > 0:
            return pipelines
        pipelines.append(members)
        free = [position for position in free if position not in set(members)]


def water_fill(
    capacities: Sequence[StageCapacity], power: Sequence[float], layers: int
) -> list[tuple[int, int]]:
    """The stages of one pipeline: `(machine, layers)` in order, the largest capacity first.

    `x_i = min(c_i, lambda F_i)` with `sum x_i = layers`, `power` = `F_i`; rounded by largest
    fraction (ties: the earlier stage). Machines that get no layer are left out, and embedding and
    head are reserved by those that then are first and last. Raises UsageError when the layers do
    not fit, and for a power that is none.
    """
    if layers < 1 or len(power) != len(capacities):
        raise UsageError(
            f"{layers} layers over {len(capacities)} stages with {len(power)} powers; there is at "
            "least one layer, and each stage has its power"
        )
    if not all(0 <= each < math.inf for each in power):
        raise UsageError(f"powers of {list(power)}; each is at least 0 and finite")
    order = sorted(range(len(capacities)), key=lambda number: (-capacities[number].inner, number))
    limits = _limits(capacities, order)
    if sum(limits) < layers:
        raise UsageError(f"stages of {limits} layers do not hold {layers}")
    counts = _filled(limits, [power[number] for number in order], layers)
    used = [number for number, count in zip(order, counts, strict=True) if count > 0]
    if len(used) < len(order):
        if sum(_limits(capacities, used)) >= layers:
            rest = [capacities[number] for number in used], [power[number] for number in used]
            return [(used[at], count) for at, count in water_fill(*rest, layers)]
        # The others do not hold embedding and head as well: everyone who can takes a layer.
        for at, limit in enumerate(limits):
            if counts[at] == 0 and limit > 0:
                counts[at] = 1
                counts[max(range(len(counts)), key=lambda one: counts[one])] -= 1
    return [(number, count) for number, count in zip(order, counts, strict=True) if count > 0]


def _limits(capacities: Sequence[StageCapacity], order: Sequence[int]) -> list[int]:
    """What stages in this order hold."""
    if len(order) == 1:
        return [capacities[order[0]].only]
    limits = [capacities[number].inner for number in order]
    if order:
        limits[0], limits[-1] = capacities[order[0]].first, capacities[order[-1]].last
    return limits


def _filled(limits: Sequence[int], power: Sequence[float], layers: int) -> list[int]:
    real = _levelled(limits, power, layers)
    whole = [int(value + 1e-9) for value in real]
    by_fraction = sorted(range(len(limits)), key=lambda at: (-round(real[at] - whole[at], 9), at))
    while (lacking := layers - sum(whole)) > 0:
        for at in by_fraction:
            if lacking > 0 and whole[at] < limits[at]:
                whole[at] += 1
                lacking -= 1
    return whole


def _levelled(limits: Sequence[int], power: Sequence[float], layers: int) -> list[float]:
    """`min(c_i, lambda F_i)` with the sum `layers`: those that are full first are full, and the
    others share what is left by their power. Who has none only gets what the others do not hold."""
    least = _SAME * max(power) or 1.0
    weight = [max(each, least) for each in power]
    order = sorted(range(len(limits)), key=lambda at: (limits[at] / weight[at], at))
    real = [0.0] * len(limits)
    left = float(layers)
    for position, at in enumerate(order):
        others = sum(weight[each] for each in order[position:])
        real[at] = min(float(limits[at]), left * weight[at] / others)
        left -= real[at]
    return real
