"""The cheapest chain over the graph of (block, server): a part of any span may be used.

Parallax (arXiv 2509.26182), phase 2: `D(l+1, g) = min over g' hosting l of D(l, g') + rho(g', g) +
tau(g, l+1)`, with `rho(g, g) = 0`. Here `tau` is the time of a *block* at that server, and entering
a server costs its overhead and wait once. One boundary between blocks is one step over arrays.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise

import numpy as np

from swarm.routing.network import Floats, Indices
from swarm.routing.server_index import Candidates

_MAX_REPEATS_RESOLVED = 64
_NOBODY = -1


@dataclass(frozen=True)
class Part:
    """Blocks `start:end` at the server with this number."""

    server: int
    start: int
    end: int


@dataclass(frozen=True)
class Chain:
    """A chain and its cost in seconds over the whole request."""

    cost_s: float
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class _Case:
    """The servers with what is left of their spans, and blocks that one server must take."""

    candidates: Candidates
    start: Indices
    end: Indices
    only: Mapping[int, int]
    """Block -> the one server that may take it."""


def cheapest_chain(candidates: Candidates, width: int | None = None) -> Chain | None:
    """The cheapest chain in which every server is one run of blocks; None if there is none.

    `width` None: exact, O(blocks x hosts^2) over arrays. Else pruned: at each boundary only the
    `width` cheapest exits are followed. (Shifting a cut between two servers changes the cost
    linearly, so by the triangle inequality an optimal cut lies where a span begins or ends: exits
    at the end of a span lead to everybody, the others to the servers whose span begins there.)

    A server may be best twice (used, left, used again). That chain is a lower bound; three cases
    exclude it and lose no valid chain (the server ends before its second part, begins after its
    first part, or serves all between), and they are searched best first.
    """
    best: Chain | None = None
    for group in np.unique(candidates.group[candidates.usable]).tolist():
        usable = candidates.usable & (candidates.group == group)
        found = _without_repeats(replace(candidates, usable=usable), width)
        if found is not None and (best is None or found.cost_s < best.cost_s):
            best = found
    return best


def chain_cost_s(candidates: Candidates, parts: Sequence[Part]) -> float:
    """What a chain costs by these figures."""
    cost = candidates.enter_s[parts[0].server] + candidates.leave_s[parts[-1].server]
    for part in parts:
        used = part.end - part.start
        cost += candidates.fixed_s[part.server] + used * candidates.block_s[part.server]
    for one, other in pairwise(parts):
        cost += candidates.between_s(np.array([one.server]), np.array([other.server]))[0, 0]
    return float(cost)


def _without_repeats(candidates: Candidates, width: int | None) -> Chain | None:
    order = count()
    heap: list[tuple[float, int, Chain, _Case]] = []

    def push(case: _Case) -> None:
        chain = _walk(case, width)
        if chain is not None:
            heapq.heappush(heap, (chain.cost_s, next(order), chain, case))

    push(_Case(candidates, candidates.start, candidates.end, {}))
    chain: Chain | None = None
    for _ in range(_MAX_REPEATS_RESOLVED):
        if not heap:
            return None
        _, _, chain, case = heapq.heappop(heap)
        repeat = _first_repeat(chain)
        if repeat is None:
            return chain
        first, second = repeat
        earlier, later = case.end.copy(), case.start.copy()
        earlier[first.server] = second.start
        later[first.server] = first.end
        between = dict.fromkeys(range(first.end, second.start), first.server)
        push(replace(case, end=earlier))
        push(replace(case, start=later))
        push(replace(case, only={**case.only, **between}))
    return _merged(candidates, chain) if chain is not None else None


def _first_repeat(chain: Chain) -> tuple[Part, Part] | None:
    seen: dict[int, Part] = {}
    for part in chain.parts:
        if part.server in seen:
            return seen[part.server], part
        seen[part.server] = part
    return None


def _merged(candidates: Candidates, chain: Chain) -> Chain:
    """The chain in which a server that is used twice serves all between the two as well."""
    parts = list(chain.parts)
    while (repeat := _first_repeat(Chain(0.0, tuple(parts)))) is not None:
        one, other = parts.index(repeat[0]), parts.index(repeat[1])
        parts[one : other + 1] = [Part(repeat[0].server, repeat[0].start, repeat[1].end)]
    return Chain(chain_cost_s(candidates, parts), tuple(parts))


def _walk(case: _Case, width: int | None) -> Chain | None:
    """The cheapest chain; a server may appear twice in it."""
    given = case.candidates
    cost = np.full(len(case.start), np.inf)
    """Of having passed all blocks so far, the last one at this server."""
    came: list[tuple[Indices, Indices]] = []
    """At each boundary: who was entered there, and from whom."""
    before = np.zeros(0, dtype=np.intp)
    for block in range(given.num_blocks):
        hosts = _hosts(case, block)
        if not len(hosts):
            return None
        if block == 0:
            enter = given.enter_s[hosts]
            source = np.full(len(hosts), _NOBODY, dtype=np.intp)
            stay = np.full(len(hosts), np.inf)
        else:
            enter, source = _arrivals(case, cost, before, hosts, block, width)
            stay = cost[hosts]
        enter = enter + given.fixed_s[hosts]
        entered = enter < stay
        came.append((hosts[entered], source[entered]))
        cost = np.full(len(cost), np.inf)
        cost[hosts] = np.where(entered, enter, stay) + given.block_s[hosts]
        before = hosts[np.isfinite(cost[hosts])]
    if not len(before):
        return None
    total = cost[before] + given.leave_s[before]
    last = int(total.argmin())
    return Chain(float(total[last]), _trace(came, int(before[last])))


def _hosts(case: _Case, block: int) -> Indices:
    hosting = case.candidates.usable & (case.start <= block) & (block < case.end)
    hosts: Indices = np.flatnonzero(hosting)
    if block in case.only:
        hosts = hosts[hosts == case.only[block]]
    return hosts


def _arrivals(
    case: _Case,
    cost: Floats,
    before: Indices,
    hosts: Indices,
    boundary: int,
    width: int | None,
) -> tuple[Floats, Indices]:
    """For each host, the least cost of arriving at it at this boundary, and from whom."""
    given = case.candidates
    if not given.delay_weight:
        best = before[cost[before].argmin()]
        return np.full(len(hosts), cost[best]), np.full(len(hosts), best)
    if width is None:
        found, at = _least(given, cost, before, hosts)
        return found, before[at]
    arrived = np.full(len(hosts), np.inf)
    source = np.full(len(hosts), _NOBODY, dtype=np.intp)
    leaving = _cheapest(before[case.end[before] == boundary], cost, width)
    begins = case.start[hosts] == boundary
    for senders, chosen in (
        (leaving, np.ones(len(hosts), dtype=np.bool_)),
        (_cheapest(before, cost, width), begins),
    ):
        if len(senders) and chosen.any():
            found, at = _least(given, cost, senders, hosts[chosen])
            better = found < arrived[chosen]
            arrived[chosen] = np.where(better, found, arrived[chosen])
            source[chosen] = np.where(better, senders[at], source[chosen])
    return arrived, source


def _least(
    given: Candidates, cost: Floats, senders: Indices, receivers: Indices
) -> tuple[Floats, Indices]:
    ways = given.between_s(senders, receivers)
    ways += cost[senders][:, None]
    at = ways.argmin(axis=0)
    return ways[at, np.arange(len(receivers))], at


def _cheapest(servers: Indices, cost: Floats, width: int) -> Indices:
    if len(servers) <= width:
        return servers
    chosen: Indices = servers[np.argpartition(cost[servers], width)[:width]]
    return chosen


def _trace(came: Sequence[tuple[Indices, Indices]], last: int) -> tuple[Part, ...]:
    parts: list[Part] = []
    server, end = last, len(came)
    for boundary in range(len(came) - 1, -1, -1):
        entered, source = came[boundary]
        at = np.flatnonzero(entered == server)
        if len(at):
            parts.append(Part(server, boundary, end))
            server, end = int(source[at[0]]), boundary
    return tuple(reversed(parts))
