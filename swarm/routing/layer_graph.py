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
from numpy.typing import NDArray

from swarm.routing.network import Floats, Indices
from swarm.routing.server_index import Candidates

_MAX_REPEATS_RESOLVED = 64
_NOBODY = -1
_HOSTS_PER_WIDTH = 6
_FEW_HOSTS = 1.5
"""Choosing among hosts pays only where there are this many times more than are wanted."""


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

    `width` None: exact, O(blocks x hosts^2) over arrays. Else pruned: of each block's hosts only
    those `6 x width` that cost least a block by themselves, and at each boundary only the
    `width / 2` cheapest exits, and the `width` cheapest of those whose span ends there. (Shifting a
    cut between two servers changes the cost linearly, so by the triangle inequality an optimal cut
    lies where a span begins or ends.)

    A server may be best twice (used, left, used again). That chain is a lower bound; three cases
    exclude it and lose no valid chain (the server ends before its second part, begins after its
    first part, or serves all between), and they are searched best first.
    """
    best: Chain | None = None
    for group in np.unique(candidates.group[candidates.usable]).tolist():
        usable = candidates.usable & (candidates.group == group)
        if width is not None:
            usable = _promising(candidates, usable, _HOSTS_PER_WIDTH * width)
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


def _promising(candidates: Candidates, usable: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Of each block's hosts the `most` that cost least a block, being a hop at all included."""
    alone = candidates.enter_s + candidates.leave_s + candidates.fixed_s
    alone = alone / (candidates.end - candidates.start) + candidates.block_s
    among = np.flatnonzero(usable)
    start, end, alone = candidates.start[among], candidates.end[among], alone[among]
    if (end - start).sum() <= _FEW_HOSTS * most * candidates.num_blocks:
        return usable
    by_cost = np.argsort(alone, kind="stable")
    hosted = _hosted(start[by_cost], end[by_cost], candidates.num_blocks)
    rank = hosted.cumsum(axis=1, dtype=np.int32)
    chosen = np.sort(by_cost[(hosted & (rank <= most)).any(axis=0)])
    promising = np.zeros_like(usable)
    promising[among[chosen]] = True
    return promising


def _walk(case: _Case, width: int | None) -> Chain | None:
    """The cheapest chain; a server may appear twice in it.

    `level[j]` is the cost of having entered server `j`, less its time for the blocks before: having
    passed `b` blocks, the last one there, costs `level[j] + block_s[j] * b`.
    """
    given = case.candidates
    among = np.flatnonzero(given.usable & (case.start < case.end))
    start, end = case.start[among], case.end[among]
    block_s, fixed_s = given.block_s[among], given.fixed_s[among]
    level = np.full(len(among), np.inf)
    came: list[tuple[Indices, Indices]] = []
    """At each boundary: who was entered there, and from whom."""
    before = nobody = np.zeros(0, dtype=np.intp)
    between: Floats | None = None
    """The ways between all hosts, where they are the same over more than one boundary."""
    stayed = False
    blocks, numbers = _hosted(start, end, given.num_blocks).nonzero()
    hosts_of = np.split(numbers, np.searchsorted(blocks, np.arange(1, given.num_blocks)))
    for block, hosts in enumerate(hosts_of):
        if block in case.only:
            hosts = hosts[among[hosts] == case.only[block]]
        if not len(hosts):
            return None
        if block == 0:
            arrived = given.enter_s[among[hosts]]
            source = np.full(len(hosts), _NOBODY, dtype=np.intp)
        else:
            exits = level[before] + block_s[before] * block
            senders = _followed(exits, end[before] == block, width)
            same = np.array_equal(hosts, before)
            if not (same and stayed):
                between = None
                ways = given.between_s(among[before[senders]], among[hosts])
            else:
                if between is None:
                    between = given.between_s(among[hosts], among[hosts])
                ways = between[senders]
            stayed = same
            ways += exits[senders][:, None]
            at = ways.argmin(axis=0)
            arrived, source = ways[at, np.arange(len(hosts))], before[senders[at]]
            if block in case.only or (block - 1) in case.only:
                # Who is not asked for this block has left.
                stays = np.isin(hosts, before)
                level[hosts[~stays]] = np.inf
        entering = arrived + fixed_s[hosts] - block_s[hosts] * block
        entered = entering < level[hosts]
        if entered.any():
            level[hosts[entered]] = entering[entered]
            came.append((hosts[entered], source[entered]))
        else:
            came.append((nobody, nobody))
        before = hosts
    total = level[before] + block_s[before] * given.num_blocks + given.leave_s[among[before]]
    last = int(total.argmin())
    parts = _trace(came, int(before[last]))
    return Chain(
        float(total[last]),
        tuple(Part(int(among[part.server]), part.start, part.end) for part in parts),
    )


def _hosted(start: Indices, end: Indices, num_blocks: int) -> NDArray[np.bool_]:
    """`[num_blocks, n]`: whether the server has the block."""
    block = np.arange(num_blocks)[:, None]
    hosted: NDArray[np.bool_] = (start <= block) & (block < end)
    return hosted


def _followed(exits: Floats, ending: NDArray[np.bool_], width: int | None) -> Indices:
    """Positions of the exits that lead on."""
    if width is None or len(exits) <= 2 * width:
        return np.arange(len(exits))
    cheapest = exits.argpartition(width // 2)[: width // 2]
    leaving = ending.nonzero()[0]
    if len(leaving) > width:
        leaving = leaving[exits[leaving].argpartition(width)[:width]]
    followed: Indices = np.concatenate([cheapest, leaving])
    return followed


def _trace(came: Sequence[tuple[Indices, Indices]], last: int) -> tuple[Part, ...]:
    parts: list[Part] = []
    server, end = last, len(came)
    for boundary in range(len(came) - 1, -1, -1):
        entered, source = came[boundary]
        if not len(entered):
            continue
        at = np.flatnonzero(entered == server)
        if len(at):
            parts.append(Part(server, boundary, end))
            server, end = int(source[at[0]]), boundary
    return tuple(reversed(parts))
