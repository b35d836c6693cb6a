"""The graph of whole hops: every server is used from where it is entered to the end of its span.

Sun et al., arXiv 2512.21884, Lemma 1: server `j` can follow `i` iff `a_j <= a_i + m_i <= a_j +
m_j - 1`, and the hop runs `k_ij = (a_j + m_j) - (a_i + m_i)` blocks. The ends of the hops of a
chain grow, so the servers in the order of their ends are a graph without cycles, and no server
comes twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from swarm.routing.layer_graph import Chain, Part
from swarm.routing.network import Floats, Indices
from swarm.routing.server_index import Candidates

_SOURCE = -1


@dataclass(frozen=True)
class HopCosts:
    """What hops cost; `[n]` arrays over the servers, seconds."""

    num_blocks: int
    start: Indices
    end: Indices
    usable: NDArray[np.bool_]
    enter_s: Floats
    leave_s: Floats
    fixed_s: Floats
    block_s: Floats
    between_s: Floats
    """`[n, n]`."""
    wait_s: Floats
    """`[n, most blocks + 1]`: until there is room for that many blocks; infinite: never."""

    @classmethod
    def of(cls, candidates: Candidates, wait_s: Floats | None = None) -> "HopCosts":
        """Without waits if none are given."""
        count = len(candidates.start)
        everyone = np.arange(count)
        if wait_s is None:
            wait_s = np.zeros((count, candidates.num_blocks + 1))
        return cls(
            candidates.num_blocks,
            candidates.start,
            candidates.end,
            candidates.usable,
            candidates.enter_s,
            candidates.leave_s,
            candidates.fixed_s,
            candidates.block_s,
            candidates.between_s(everyone, everyone),
            wait_s,
        )


@dataclass(frozen=True)
class HopChain:
    """A chain over whole hops."""

    chain: Chain
    """Its cost is without waits."""
    wait_s: float
    """Until every hop has room: the longest of its waits."""


@dataclass(frozen=True)
class _Level:
    """The servers whose spans end at the same block: `k`, after any of `p` others."""

    servers: Indices
    first: int
    """Position of the first of them in the order of ends."""
    low: int
    """Position of the first of the `p`; the last one is at `first - 1`."""
    used: Indices
    """`[p, 1]`: blocks that are left for these servers."""
    arc_s: Floats
    """`[p, k]`: way and blocks; infinite where there is a gap between the two."""
    direct_s: Floats
    """`[k]`: from the client; infinite for those that do not hold the first block."""


@dataclass(frozen=True)
class HopLevels:
    """What a search needs of `HopCosts` beside the waits and the fixed costs: many searches can
    share it."""

    order: Indices
    ends: Indices
    levels: tuple[_Level, ...]

    @classmethod
    def of(cls, costs: HopCosts) -> "HopLevels":
        """Of the usable servers."""
        usable = np.flatnonzero(costs.usable)
        order = usable[np.argsort(costs.end[usable], kind="stable")]
        ends = costs.end[order]
        levels: list[_Level] = []
        firsts = np.searchsorted(ends, np.unique(ends)).tolist()
        for first, beyond in pairwise([*firsts, len(order)]):
            servers = order[first:beyond]
            begin, end = costs.start[servers], int(ends[first])
            low = int(np.searchsorted(ends[:first], begin.min()))
            previous = order[low:first]
            left = costs.end[previous][:, None]
            arc = costs.between_s[np.ix_(previous, servers)]
            arc = arc + costs.block_s[servers] * (end - left)
            levels.append(
                _Level(
                    servers=servers,
                    first=first,
                    low=low,
                    used=end - left,
                    arc_s=np.where(left < begin, np.inf, arc),
                    direct_s=np.where(
                        begin == 0,
                        costs.enter_s[servers] + costs.block_s[servers] * end,
                        np.inf,
                    ),
                )
            )
        return cls(order, ends, tuple(levels))


def cheapest_hops(
    costs: HopCosts,
    *,
    add_waits: bool = True,
    most_wait_s: float = np.inf,
    levels: HopLevels | None = None,
) -> HopChain | None:
    """The chain with the least cost (with the sum of its waits, if `add_waits`), among those with
    no wait longer than `most_wait_s`. O(n^2) over arrays; None if there is none.

    `levels`: `HopLevels.of(costs)`, if it is there from an earlier search.
    """
    levels = levels or HopLevels.of(costs)
    order, ends = levels.order, levels.ends
    total = np.full(len(order), np.inf)
    source = np.full(len(order), _SOURCE, dtype=np.intp)
    for level in levels.levels:
        servers = level.servers
        waits = costs.wait_s[servers, int(ends[level.first])]
        best = level.direct_s + (waits if add_waits else 0.0)
        best[~(waits <= most_wait_s)] = np.inf
        at = np.full(len(servers), _SOURCE, dtype=np.intp)
        if len(level.used):
            waits = costs.wait_s[servers, level.used]
            found = level.arc_s + total[level.low : level.first, None]
            if add_waits:
                found += waits
            found[~(waits <= most_wait_s)] = np.inf
            nearest = found.argmin(axis=0)
            least = found[nearest, np.arange(len(servers))]
            passed = ~(best < least)
            best[passed] = least[passed]
            at[passed] = level.low + nearest[passed]
        beyond = level.first + len(servers)
        total[level.first : beyond] = best + costs.fixed_s[servers]
        source[level.first : beyond] = at
    last = np.flatnonzero((ends == costs.num_blocks) & np.isfinite(total))
    if not len(last):
        return None
    closing = total[last] + costs.leave_s[order[last]]
    return _chain(
        costs, order, source, int(last[closing.argmin()]), float(closing.min()), add_waits
    )


class OpenHops:
    """The same graph searched again and again, while hops are closed: `cheapest_hops` without any
    waits. What lies before the first level that has changed is not computed anew."""

    def __init__(self, costs: HopCosts, levels: HopLevels | None = None) -> None:
        """`levels`: `HopLevels.of(costs)`, if it is there."""
        self._costs = costs
        self._levels = levels or HopLevels.of(costs)
        order, ends = self._levels.order, self._levels.ends
        self._direct_s = [level.direct_s.copy() for level in self._levels.levels]
        self._arcs_s = [np.array(level.arc_s.T, order="C") for level in self._levels.levels]
        """`[k, p]`: the least of each row is found faster than that of each column."""
        self._fixed_s = [costs.fixed_s[level.servers] for level in self._levels.levels]
        self._places = {
            server: (number, row)
            for number, level in enumerate(self._levels.levels)
            for row, server in enumerate(level.servers.tolist())
        }
        self._total = np.full(len(order), np.inf)
        self._source = np.full(len(order), _SOURCE, dtype=np.intp)
        self._last = np.flatnonzero(ends == costs.num_blocks)
        self._leave_s = costs.leave_s[order[self._last]]
        self._rows = np.arange(len(order))
        self._stale = 0
        """The first level that is to be computed."""

    def close(self, server: int, fits: NDArray[np.bool_]) -> None:
        """From now on a hop of `b` blocks at `server` is not taken unless `fits[b]`. Nothing is
        opened again."""
        if server not in self._places:
            return
        number, row = self._places[server]
        level = self._levels.levels[number]
        changed = False
        if not fits[self._levels.ends[level.first]]:
            changed = bool(self._direct_s[number][row] < np.inf)
            self._direct_s[number][row] = np.inf
        if len(level.used):
            arcs = self._arcs_s[number][row]
            closing = ~fits[level.used[:, 0]] & (arcs < np.inf)
            if closing.any():
                arcs[closing] = np.inf
                changed = True
        if changed:
            self._stale = min(self._stale, number)

    def cheapest(self) -> Chain | None:
        """None if there is none left."""
        levels, total = self._levels.levels, self._total
        for number in range(self._stale, len(levels)):
            level = levels[number]
            best = self._direct_s[number].copy()
            at = np.full(len(best), _SOURCE, dtype=np.intp)
            if len(level.used):
                found = self._arcs_s[number] + total[level.low : level.first]
                nearest = found.argmin(axis=1)
                least = found[self._rows[: len(best)], nearest]
                passed = ~(best < least)
                best[passed] = least[passed]
                at[passed] = level.low + nearest[passed]
            beyond = level.first + len(best)
            total[level.first : beyond] = best + self._fixed_s[number]
            self._source[level.first : beyond] = at
        self._stale = len(levels)
        closing_s = total[self._last] + self._leave_s
        if not len(closing_s) or not np.isfinite(least_s := float(closing_s.min())):
            return None
        position = int(self._last[closing_s.argmin()])
        found_hops = _chain(
            self._costs, self._levels.order, self._source, position, least_s, add_waits=False
        )
        return found_hops.chain


def _chain(
    costs: HopCosts,
    order: Indices,
    source: Indices,
    position: int,
    total_s: float,
    add_waits: bool,
) -> HopChain:
    parts: list[Part] = []
    waits: list[float] = []
    while position != _SOURCE:
        server, before = int(order[position]), int(source[position])
        start = 0 if before == _SOURCE else int(costs.end[order[before]])
        end = int(costs.end[server])
        parts.append(Part(server, start, end))
        waits.append(float(costs.wait_s[server, end - start]))
        position = before
    cost_s = total_s - (sum(waits) if add_waits else 0.0)
    return HopChain(Chain(cost_s, tuple(reversed(parts))), max(waits))


def waits(
    free: Sequence[int],
    releases: Sequence[Sequence[tuple[float, int]]],
    needed: Sequence[Sequence[int]] | NDArray[np.int64],
) -> Floats:
    """`[n, most blocks + 1]`: how long a session waits for room for so many blocks.

    `free`: cache now; `releases`: (after seconds, cache) in any order; `needed`: for each number of
    blocks. Sessions are taken to end in order until there is room (section III-D of the paper).
    """
    table = np.zeros((len(free), max((len(row) for row in needed), default=1)))
    for server, (room, coming, wanted) in enumerate(zip(free, releases, needed, strict=True)):
        if len(wanted) == table.shape[1] and wanted[-1] <= room:
            continue  # more blocks want no less: there is room for all of them
        ordered = sorted(coming)
        times = np.array([0.0, *(after for after, _ in ordered), np.inf])
        rooms = room + np.cumsum([0, *(tokens for _, tokens in ordered)])
        table[server] = np.inf
        table[server, : len(wanted)] = times[np.searchsorted(rooms, wanted)]
    return table
