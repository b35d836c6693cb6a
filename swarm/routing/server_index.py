"""The servers of a snapshot as arrays, kept from one decision to the next."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swarm.routing.network import Floats, Indices, Links, Network
from swarm.routing.performance import ChainMode
from swarm.routing.router import (
    RouteCosts,
    RouteRequest,
    decode_block_s,
    prefill_block_s,
    request_weights,
    row_block_s,
)
from swarm.routing.view import CacheUnit, ServerState, ServerView, SwarmView
from swarm.spans import PeerId

BUSY_CACHE_PENALTY_S = 10.0
"""For a server whose free cache is too small now: it is taken when there is no other (Petals)."""
SMALL_CACHE_PENALTY_S = 1000.0
"""For a server whose whole cache is too small: it will refuse, and say why."""
_COLUMNS = 11


@dataclass(frozen=True)
class Candidates:
    """What one decision chooses from; `[n]` arrays over the servers of the snapshot, in its order.

    All costs are seconds over the whole request.
    """

    num_blocks: int
    start: Indices
    end: Indices
    usable: NDArray[np.bool_]
    """Online, of this checkpoint, not to be avoided."""
    group: Indices
    """Number of its numerics; one chain stays in one group."""
    fixed_s: Floats
    """Of being a hop: overheads, waits and passes; in a relay chain the round trips too."""
    block_s: Floats
    """Of each block that is used."""
    enter_s: Floats
    """From the client (push; else zero)."""
    leave_s: Floats
    """Back to the client (push; else zero)."""
    load_s: Floats
    """Of `fixed_s`, what comes from other sessions: waits, and the penalties of full caches."""
    wait_s: Floats
    """Of it, the waits that servers announce."""
    links: Links
    delay_weight: float
    carried_s: Floats | None
    """Of all bytes of the request through each server's access; None: nothing is known of it."""

    def between_s(self, senders: Indices, receivers: Indices) -> Floats:
        """`[senders, receivers]`: what the way between two servers costs; zero in a relay chain."""
        if not self.delay_weight:
            return np.zeros((len(senders), len(receivers)))
        cost: Floats = self.links.between_s(senders, receivers)
        cost *= self.delay_weight
        if self.carried_s is not None:
            cost += np.maximum(self.carried_s[senders][:, None], self.carried_s[receivers])
        return cost


class ServerIndex:
    """Turns snapshots into arrays; of the next one only what has changed is read anew.

    A server counts as unchanged if its `ServerView` is the same object, so whoever makes snapshots
    keeps the objects of servers of which nothing new is known.
    """

    def __init__(self, costs: RouteCosts) -> None:
        self.costs = costs
        self._view: SwarmView | None = None
        self._table = np.zeros((0, _COLUMNS))
        self._groups: dict[object, int] = {}
        self._network: Network | None = None
        self._peers: tuple[PeerId, ...] = ()
        self._links: Links | None = None

    def candidates(
        self,
        view: SwarmView,
        network: Network,
        request: RouteRequest,
        *,
        extra_s: Floats | None = None,
        cache_penalties: bool = True,
    ) -> Candidates:
        """`extra_s`: `[n]`, added to each decode step at a server (the load that we know of);
        `cache_penalties`: whether servers without room now are to be avoided."""
        self._read(view)
        links = self._links_of(network)
        table = self._table
        steps, tokens = request_weights(request)
        prompt = request.prompt_tokens
        costs = self.costs
        fixed = table[:, 4] * (steps + 1.0)
        fixed += steps * costs.overhead.decode_s + costs.overhead.prefill_s
        fixed += costs.overhead.prefill_token_s * prompt
        wait = table[:, 10] * (steps + 1.0)
        load = wait.copy()
        if extra_s is not None:
            load += extra_s * steps
        if cache_penalties:
            load += self._penalties_s(view, request)
        fixed += load
        block = prompt * table[:, 5] + steps * table[:, 3]
        delay = links.from_peer_s(request.client)
        way = np.maximum(links.seconds_per_byte, network.seconds_per_byte(request.client))
        usable = table[:, 2] > 0
        if request.avoid:
            usable = usable & np.array(
                [peer not in request.avoid for peer in self._peers], dtype=bool
            )
        carried = costs.activation_bytes * tokens
        carried_s = carried * links.seconds_per_byte
        relay = costs.mode is ChainMode.RELAY
        if relay:
            fixed += 2 * (steps + 1) * delay + 2 * carried * way
        one_way = np.zeros_like(delay) if relay else (steps + 1) * delay
        returned = costs.activation_bytes * (steps + 1)
        return Candidates(
            num_blocks=view.num_blocks,
            start=table[:, 0].astype(np.intp),
            end=table[:, 1].astype(np.intp),
            usable=usable,
            group=table[:, 8].astype(np.intp),
            fixed_s=fixed,
            block_s=block,
            enter_s=one_way if relay else one_way + carried * way,
            leave_s=one_way if relay else one_way + returned * way,
            load_s=load,
            wait_s=wait,
            links=links,
            delay_weight=0.0 if relay else steps + 1.0,
            carried_s=None if relay or not carried_s.any() else carried_s,
        )

    def _penalties_s(self, view: SwarmView, request: RouteRequest) -> Floats:
        length = self._table[:, 1] - self._table[:, 0]
        needed = request.cache_tokens * (length if view.cache_unit is CacheUnit.BLOCK else 1.0)
        busy = np.where(self._table[:, 6] < needed, BUSY_CACHE_PENALTY_S, 0.0)
        return np.where(self._table[:, 7] < needed, SMALL_CACHE_PENALTY_S, busy)

    def row_s_of(self, view: SwarmView) -> Floats:
        """`[n]`: by which one more row lengthens a decode pass over the server's whole span."""
        self._read(view)
        found: Floats = self._table[:, 9]
        return found

    def _read(self, view: SwarmView) -> None:
        before, self._view = self._view, view
        if before is view:
            return
        if before is None or before.checkpoint != view.checkpoint:
            before = None
        old = before.servers if before is not None else ()
        if before is None or len(old) != len(view.servers) or before.num_blocks != view.num_blocks:
            old = ()
            self._table = np.zeros((len(view.servers), _COLUMNS))
            changed = list(range(len(view.servers)))
        else:
            pairs = zip(old, view.servers, strict=True)
            changed = [number for number, (one, other) in enumerate(pairs) if one is not other]
        rows = [self._row(view.servers[number], view) for number in changed]
        if rows:
            self._table[changed] = rows
        if not old or any(old[number].peer != view.servers[number].peer for number in changed):
            self._peers = tuple(server.peer for server in view.servers)
            self._links = None

    def _row(self, server: ServerView, view: SwarmView) -> tuple[float, ...]:
        kind = None if self.costs.mix_numerics else server.numerics
        usable = (
            server.state is ServerState.ONLINE
            and server.checkpoint == view.checkpoint
            and server.span.end <= view.num_blocks
        )
        return (
            server.span.start,
            server.span.end,
            usable,
            decode_block_s(server),
            server.decode_fixed_ms / 1e3,
            prefill_block_s(server, 1),
            server.cache_tokens_free,
            server.cache_tokens_total,
            self._groups.setdefault(kind, len(self._groups)),
            row_block_s(server) * len(server.span),
            server.queue_wait_ms / 1e3,
        )

    def _links_of(self, network: Network) -> Links:
        if self._links is None or self._network is not network:
            self._network = network
            self._links = network.links(self._peers)
        return self._links
