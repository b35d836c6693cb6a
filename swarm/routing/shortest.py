"""The route with the least delay per token: a shortest path over the boundaries between blocks."""

import heapq
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

from swarm.errors import MissingBlocksError, SwarmError
from swarm.routing.view import ServerState, ServerView, SwarmView
from swarm.sessions.messages import MAX_HOPS, Hop
from swarm.spans import PeerId, Span, missing_spans

DEFAULT_RTT_S = 0.15
"""Of a server that was never measured (as in Petals)."""
DEFAULT_DECODE_MS_PER_BLOCK = 10.0
"""Of a server that has not measured itself yet."""
HOP_OVERHEAD_S = 0.002
"""What one more hop costs beside compute and delay: codecs, frames, one task switch or two."""
BUSY_CACHE_PENALTY_S = 10.0
"""For a server whose free cache is too small now: it is taken when there is no other (Petals)."""
SMALL_CACHE_PENALTY_S = 1000.0
"""For a server whose whole cache is too small: it will refuse, and say why."""
_MAX_REPEATS_RESOLVED = 64


@dataclass(frozen=True)
class _Option:
    """A server with the part of its span that may be used, and its costs in seconds."""

    peer: PeerId
    span: Span
    delay_s: float
    fixed_s: float
    block_s: float


class _Step(NamedTuple):
    """How a server was entered: at which boundary, and after which server (an index)."""

    start: int
    before: int | None


class ShortestRouter:
    """Finds the chain with the least time per decoded token.

    A hop costs `decode_ms_per_block x blocks used + queue wait + a small overhead`, and each way
    between two peers its one-way delay; a hop may use a part of its server's span, and no server
    appears twice. A client measures only its own round trips; the delay between two servers is
    taken as the larger of their delays to the client (less than their difference it cannot be).

    Near-equals are chosen among at random: each server's cost is stretched by a factor drawn from
    `[1, 1 + near_equal]`, so the route is never more than `near_equal` worse than the best one, and
    clients do not all pick the same chain.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        near_equal: float = 0.05,
        mix_numerics: bool = False,
    ) -> None:
        """`mix_numerics`: whether one chain may have servers that compute differently."""
        self._rng = rng
        self._near_equal = near_equal
        self._mix_numerics = mix_numerics

    def route(
        self,
        view: SwarmView,
        *,
        rtt_s: Mapping[PeerId, float],
        tokens_needed: int,
        avoid: Collection[PeerId] = (),
    ) -> tuple[Hop, ...]:
        """The chain for a new session; of quantised weights only where no other chain is.

        `rtt_s`: measured round trips from this client; `tokens_needed`: rows x length of the
        session; `avoid`: servers that just failed.

        Raises MissingBlocksError when no chain covers all blocks, with the missing runs.
        """
        online = view.online(avoid)
        groups: dict[object, list[ServerView]] = {}
        for server in online:
            groups.setdefault(None if self._mix_numerics else server.numerics, []).append(server)
        best: tuple[tuple[bool, float], tuple[Hop, ...]] | None = None
        for servers in groups.values():
            if missing_spans([server.span for server in servers], view.num_blocks):
                continue
            options = [self._option(server, rtt_s, tokens_needed) for server in servers]
            cost_s, hops = _shortest_without_repeats(options, view.num_blocks)
            # Who quantises is faster and says other things than the model does.
            rank = (not self._mix_numerics and servers[0].numerics.quantised, cost_s)
            if best is None or rank < best[0]:
                best = (rank, hops)
        if best is None:
            raise _missing(view, online, avoid)
        return best[1]

    def _option(
        self, server: ServerView, rtt_s: Mapping[PeerId, float], tokens_needed: int
    ) -> _Option:
        stretch = 1 + self._near_equal * self._rng.random()
        fixed_s = fixed_cost(server, tokens_needed) * stretch
        delay_s = one_way_delay(server.peer, rtt_s)
        return _Option(server.peer, server.span, delay_s, fixed_s, decode_block_s(server) * stretch)


def fixed_cost(server: ServerView, tokens_needed: int) -> float:
    """Seconds that a hop over `server` costs however many blocks it uses, without delays."""
    cost = HOP_OVERHEAD_S + server.queue_wait_ms / 1000
    if server.cache_tokens_total < tokens_needed:
        cost += SMALL_CACHE_PENALTY_S
    elif server.cache_tokens_free < tokens_needed:
        cost += BUSY_CACHE_PENALTY_S
    return cost


def decode_block_s(server: ServerView) -> float:
    """Seconds that one token takes in one block of `server`."""
    return (server.decode_ms_per_block or DEFAULT_DECODE_MS_PER_BLOCK) / 1000


def one_way_delay(peer: PeerId, rtt_s: Mapping[PeerId, float]) -> float:
    """Seconds from the client to `peer`."""
    return rtt_s.get(peer, DEFAULT_RTT_S) / 2


# ---- the search


def _shortest_without_repeats(
    options: list[_Option], num_blocks: int
) -> tuple[float, tuple[Hop, ...]]:
    """The cheapest chain in which every server is one run of blocks.

    The dynamic programme alone may use a server, another, and the first one again. Such a chain is
    a lower bound; three cases exclude it and lose no valid chain (the server ends before its second
    part, begins after its first part, or serves all between the two itself), and the cases are
    searched best first.
    """
    order = count()
    heap: list[tuple[float, int, list[Hop], list[_Option]]] = []

    def push(case: list[_Option]) -> None:
        found = _cheapest_chain(case, num_blocks)
        if found is not None:
            heapq.heappush(heap, (found[0], next(order), found[1], case))

    push(options)
    for _ in range(_MAX_REPEATS_RESOLVED):
        if not heap:
            break
        cost, _, hops, case = heapq.heappop(heap)
        repeat = _first_repeat(hops)
        if repeat is None:
            if len(hops) > MAX_HOPS:
                break
            return cost, tuple(hops)
        first, second = repeat
        peer, gap = PeerId(first.peer), Span(first.end, second.start)
        push(_restrict(case, Span(second.start, num_blocks), peer))
        push(_restrict(case, Span(0, first.end), peer))
        push(_restrict(case, gap, peer, others=True))
    return _fewest_hops(options, num_blocks)


def _cheapest_chain(options: Sequence[_Option], num_blocks: int) -> tuple[float, list[Hop]] | None:
    """The cheapest chain over `0:num_blocks`; a server may appear twice in it.

    The boundaries between blocks are walked once, with, for each server, where it is cheapest to
    have entered it: O(servers x boundaries) (a tenth of a second for 500 servers and 126 blocks).
    """
    by_delay = sorted(options, key=lambda option: option.delay_s)
    entered: dict[int, tuple[float, _Step]] = {}
    left: list[dict[int, _Step]] = []
    for boundary in range(num_blocks + 1):
        exits: list[tuple[int, float]] = []
        left.append({})
        for index, (cost, step) in entered.items():
            option = by_delay[index]
            if boundary <= option.span.end:
                exits.append((index, cost + option.block_s * boundary))
                left[boundary][index] = step
        if boundary == num_blocks:
            break
        arrivals = _arrivals(by_delay, sorted(exits)) if boundary else None
        for index, option in enumerate(by_delay):
            if option.span.start <= boundary < option.span.end:
                cost, before = arrivals[index] if arrivals else (option.delay_s, None)
                cost += option.fixed_s - option.block_s * boundary
                if cost < entered.get(index, (float("inf"), None))[0]:
                    entered[index] = cost, _Step(boundary, before)
    if not exits:
        return None
    total, last = min((cost + by_delay[index].delay_s, index) for index, cost in exits)
    hops: list[Hop] = []
    end, index = num_blocks, last
    while True:
        step = left[end][index]
        hops.append(Hop(by_delay[index].peer, step.start, end))
        if step.before is None:
            return total, hops[::-1]
        end, index = step.start, step.before


def _arrivals(
    by_delay: Sequence[_Option], exits: Sequence[tuple[int, float]]
) -> list[tuple[float, int | None]]:
    """For each server, the least cost of arriving there and from which one (an index).

    `exits`: `(index, cost of being done there)`. As the way between two servers costs the larger of
    their delays, the ones nearer to the client and the ones farther are looked at apart.
    """
    done = dict(exits)
    arrivals: list[tuple[float, int | None]] = []
    best: tuple[float, int | None] = (float("inf"), None)
    for index, option in enumerate(by_delay):
        if done.get(index, float("inf")) < best[0]:
            best = done[index], index
        arrivals.append((best[0] + option.delay_s, best[1]))
    best = (float("inf"), None)
    for index in range(len(by_delay) - 1, -1, -1):
        if best[0] < arrivals[index][0]:
            arrivals[index] = best
        if index in done and done[index] + by_delay[index].delay_s < best[0]:
            best = done[index] + by_delay[index].delay_s, index
    return arrivals


def _first_repeat(hops: Sequence[Hop]) -> tuple[Hop, Hop] | None:
    seen: dict[str, Hop] = {}
    for hop in hops:
        if hop.peer in seen:
            return seen[hop.peer], hop
        seen[hop.peer] = hop
    return None


def _restrict(
    options: Sequence[_Option], without: Span, peer: PeerId, *, others: bool = False
) -> list[_Option]:
    """The options when `peer` (or all but `peer`) may not serve the blocks `without`."""
    restricted: list[_Option] = []
    for option in options:
        if (option.peer == peer) is others:
            restricted.append(option)
            continue
        for start, end in (
            (option.span.start, min(option.span.end, without.start)),
            (max(option.span.start, without.end), option.span.end),
        ):
            if start < end:
                part = Span(start, end)
                restricted.append(replace(option, span=part))
    return restricted


def _fewest_hops(options: Sequence[_Option], num_blocks: int) -> tuple[float, tuple[Hop, ...]]:
    """The chain with the fewest hops (which repeats no server): from each boundary the server that
    reaches farthest."""
    hops: list[Hop] = []
    cost, reached = 0.0, 0
    while reached < num_blocks:
        best = max(
            (option for option in options if reached in option.span),
            key=lambda option: (option.span.end, -option.fixed_s),
        )
        cost += best.fixed_s + best.block_s * (best.span.end - reached)
        hops.append(Hop(best.peer, reached, best.span.end))
        reached = best.span.end
    if len(hops) > MAX_HOPS:
        raise SwarmError(
            f"the shortest chain over {num_blocks} blocks has {len(hops)} hops, and a session "
            f"takes at most {MAX_HOPS}; servers with longer spans are needed"
        )
    return cost, tuple(hops)


def _missing(
    view: SwarmView, online: Sequence[ServerView], avoid: Collection[PeerId]
) -> MissingBlocksError:
    missing = view.missing(avoid)
    if not missing:
        by_numerics: dict[str, list[Span]] = {}
        for server in online:
            by_numerics.setdefault(str(server.numerics), []).append(server.span)
        kinds = "; ".join(
            f"{kind}: {_runs(missing_spans(spans, view.num_blocks))} missing"
            for kind, spans in sorted(by_numerics.items())
        )
        blocks = sorted(
            {gap for spans in by_numerics.values() for gap in missing_spans(spans, view.num_blocks)}
        )
        return MissingBlocksError(
            f"no servers that compute alike cover all {view.num_blocks} blocks ({kinds}); "
            "allow it (--mix-numerics, ClientSettings(mix_numerics=True)), or start a server for "
            "the missing blocks",
            tuple(map(str, blocks)),
        )
    runs = _runs(missing)
    message = f"no server is online for blocks {runs} of {view.num_blocks}"
    soon = [
        f"{server.span} is {server.state}"
        for server in view.servers
        if server.state in (ServerState.JOINING, ServerState.DRAINING)
        and any(server.span.start < gap.end and gap.start < server.span.end for gap in missing)
    ]
    if soon:
        message += f" ({', '.join(soon)})"
    if avoid:
        message += f" ({len(avoid)} servers that just failed are left out)"
    message += f"; start one with: swarm-server --blocks {missing[0]} --peers ..."
    return MissingBlocksError(message, tuple(map(str, missing)))


def _runs(spans: Sequence[Span]) -> str:
    return ", ".join(map(str, spans))
