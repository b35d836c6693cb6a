"""CG-BP: conservative greedy block placement (Sun et al., arXiv 2512.21884, section III)."""

import math
from dataclasses import dataclass

import numpy as np

from swarm.errors import MemoryShortError, UsageError
from swarm.routing.fitting import fitting
from swarm.routing.inventory import Inventory, Tables, Workload, tables
from swarm.routing.layout import Layout
from swarm.routing.network import Floats, Indices
from swarm.routing.performance import ChainMode
from swarm.routing.planned import best_routes
from swarm.spans import Span

_ANY_SESSIONS = 1 << 30
"""Carried by a machine whose sessions need no cache."""


@dataclass(frozen=True)
class ConservativeSizes:
    """What every machine hosts so that it could carry all sessions over all its blocks."""

    blocks: Indices
    """`[n]`: `m_j = min(floor(M_j / (s_m + s_c R)), L)`."""
    block_s: Floats
    """`[n]`: `tau_j + max_c t_cj / m_j`; infinite where nothing fits."""
    sessions: Indices
    """`[n]`: what it could carry beside its blocks."""


def conservative_sizes(inventory: Inventory, figures: Tables, sessions: int) -> ConservativeSizes:
    """Step 1 and 2 of CG-BP for `R = sessions`."""
    each = figures.block_bytes + figures.cache_bytes * sessions
    limit = np.array(
        [
            inventory.model.num_blocks
            if machine.max_blocks is None
            else min(inventory.model.num_blocks, machine.max_blocks)
            for machine in inventory.machines
        ]
    )
    blocks = np.minimum(fitting(figures.memory, 0.0, each), limit).astype(np.intp)
    hop_s = figures.decode_hop_s.max(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        block_s = figures.decode_block_s + np.where(blocks > 0, hop_s / blocks, np.inf)
        weights, cache = figures.block_bytes * blocks, figures.cache_bytes * blocks
        room = np.where(cache > 0, fitting(figures.memory, weights, cache), _ANY_SESSIONS)
    # By its size it carries all sessions, whatever a small difference of large numbers says.
    room = np.where(blocks > 0, np.clip(room, sessions, _ANY_SESSIONS), 0.0)
    return ConservativeSizes(blocks, block_s, room.astype(np.intp))


def most_sessions(inventory: Inventory, figures: Tables) -> int:
    """The largest `R` for which CG-BP's sizes can hold the model (0: not even for one).

    `sum_j min(floor(M_j / (s_m + s_c R)), L) >= L`, by bisection: the paper's closed form is a
    sufficient choice only.
    """

    def holds(sessions: int) -> bool:
        blocks = conservative_sizes(inventory, figures, sessions).blocks
        return int(blocks.sum()) >= inventory.model.num_blocks

    if not holds(1):
        return 0
    low, high = 1, 2
    while holds(high) and high < 1 << 24:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def sufficient_sessions(inventory: Inventory, figures: Tables) -> int:
    """`R_max = floor((sum_j M_j - s_m (L + n)) / (s_c (L + n)))` of Sun et al.: so many sessions
    the machines carry in any case, and often more (`most_sessions`). Limits of the machines'
    owners are left out."""
    parts = inventory.model.num_blocks + len(inventory.machines)
    memory, weights = float(figures.memory.sum()), figures.block_bytes * parts
    if figures.cache_bytes <= 0:
        return _ANY_SESSIONS if memory >= weights else 0
    return int(fitting(memory, weights, figures.cache_bytes * parts))


def bound_s(sizes: ConservativeSizes, figures: Tables, num_blocks: int) -> float:
    """Theorem 2: an upper bound of the mean time per token while at most `R` sessions are active.

    `sum_{j<=K} tt_j m_j - tau_K (sum_{j<=K} m_j - L)`, machines by increasing `tt`, `K` the least
    number of them that holds all blocks. Not a ratio to the optimum: that has no bound.
    """
    total, held = 0.0, 0
    for index in np.argsort(sizes.block_s, kind="stable").tolist():
        total += float(sizes.block_s[index]) * int(sizes.blocks[index])
        held += int(sizes.blocks[index])
        if held >= num_blocks:
            return total - float(figures.decode_block_s[index]) * (held - num_blocks)
    return math.inf


class ConservativePlacement:
    """CG-BP with `R` = the workload's sessions, lowered if the machines cannot hold so many.

    Without sessions, `R` comes from the rate as in the paper: `min(choose_sessions, R_max)`, with
    the time of one request over the placement for `R = 1`. In a push chain a machine's delay is
    that of `tables`: half from the client, half from its nearest others.
    """

    def place(self, inventory: Inventory, workload: Workload) -> Layout:
        """Raises MemoryShortError when the blocks do not fit beside the cache of one session."""
        figures = tables(inventory, workload)
        most = most_sessions(inventory, figures)
        inventory.check_memory(workload, 1)
        wanted = workload.at_once
        if workload.sessions == 0 and workload.rate_per_s > 0:
            alone = place_conservatively(inventory, figures, 1)
            routes = best_routes(inventory, alone, workload)
            request_s = max(route.request_s(workload.output_tokens) for route in routes)
            wanted = choose_sessions(workload.rate_per_s, request_s)
            wanted = min(wanted, sufficient_sessions(inventory, figures) or most)
        return place_conservatively(inventory, figures, min(wanted, most))


def place_conservatively(inventory: Inventory, figures: Tables, sessions: int) -> Layout:
    """CG-BP for `R = sessions`, or the next smaller `R` that it finds a cover for.

    Raises MemoryShortError if there is none. `notes`: `sessions`, and in a relay chain `bound_s` of
    Theorem 2 (in a push chain the delays of `tables` are means, and bound nothing).
    """
    num_blocks = inventory.model.num_blocks
    while sessions > 0:
        sizes = conservative_sizes(inventory, figures, sessions)
        starts = _place(sizes, num_blocks, sessions)
        if starts is not None:
            spans = {
                machine.peer: Span(start, start + int(count))
                for machine, start, count in zip(
                    inventory.machines, starts, sizes.blocks, strict=True
                )
                if count > 0
            }
            notes = {"sessions": float(sessions)}
            if inventory.mode is ChainMode.RELAY:
                notes["bound_s"] = bound_s(sizes, figures, num_blocks)
            return Layout(num_blocks, spans, notes=notes)
        sessions = min(sessions - 1, int(sessions * 0.9))
    raise MemoryShortError(
        f"CG-BP finds no cover of the {num_blocks} blocks of {inventory.model.name} even for one "
        "session; add machines"
    )


def _place(sizes: ConservativeSizes, num_blocks: int, sessions: int) -> list[int] | None:
    """Step 3: the start of each machine; None if some block then carries fewer than `sessions`."""
    if not (sizes.blocks > 0).any():
        return None
    slowest_s = float(sizes.block_s[sizes.blocks > 0].max()) + 1.0
    carried = np.zeros(num_blocks)
    time_s = np.full(num_blocks, sessions * slowest_s)
    starts = [0] * len(sizes.blocks)
    for index in np.argsort(sizes.block_s, kind="stable").tolist():
        count, room = int(sizes.blocks[index]), int(sizes.sessions[index])
        if count < 1:
            continue
        start = _start(carried, time_s, count, sessions)
        starts[index] = start
        window = slice(start, start + count)
        lacking = np.maximum(sessions - carried[window], 0)
        time_s[window] -= (slowest_s - float(sizes.block_s[index])) * np.minimum(lacking, room)
        carried[window] += room
    return starts if (carried >= sessions).all() else None


def _start(carried: Floats, time_s: Floats, count: int, sessions: int) -> int:
    lacking = carried < sessions
    starts = range(len(carried) - count + 1)
    if lacking.any():
        sums = np.concatenate([[0.0], np.cumsum(time_s)])
        helped = np.concatenate([[0], np.cumsum(lacking)])
        size = len(carried) - count + 1
        window_s = sums[count : count + size] - sums[:size]
        useful = (helped[count : count + size] - helped[:size]) > 0
        best = float(window_s[useful].max())
        # Sums of the same figures in another order differ in their last bits.
        return int(np.flatnonzero(useful & (window_s >= best - 1e-9 * abs(best)))[0])
    return min(starts, key=lambda start: (sorted(carried[start : start + count]), start))


def choose_sessions(rate_per_s: float, held_s: float) -> int:
    """`round(lambda T + sqrt(lambda T))`: the requests that are there at once, and one standard
    deviation of a Poisson variable; `held_s` = `T`: how long each holds its cache. At least 1.

    Raises UsageError for what is negative.
    """
    if not (rate_per_s >= 0 and held_s >= 0):
        raise UsageError(f"{rate_per_s:g} requests/s held {held_s:g} s; both are at least 0")
    active = rate_per_s * held_s
    return max(1, math.floor(active + math.sqrt(active) + 0.5))
