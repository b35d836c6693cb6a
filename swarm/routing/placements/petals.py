"""Petals' placement: servers join one after another, each where the swarm is weakest.

`server/block_selection.py` of Petals, as Sun et al. (arXiv 2512.21884) model it.
"""

import math
import random
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from swarm.errors import MemoryShortError
from swarm.routing.fitting import fitting
from swarm.routing.inventory import Inventory, Machine, Workload, in_gb
from swarm.routing.layout import Layout
from swarm.spans import PeerId, Span

CACHE_TOKENS = 4096
"""Of each block, however many sessions there will be (16384 with grouped queries)."""
BALANCE_QUALITY = 0.75
RELAY_SHARE = 0.2
"""Of its bandwidth that a relayed server is credited with."""
_OWN_SHARE = 1e-3
"""By which its own throughput is overstated when a server imagines itself away."""
_DEFAULT_BYTES_PER_S = 100e6 / 8
_FORWARD_TOKENS = 1024
"""Petals measures prompts of this length."""


def weakest_start(throughputs: Sequence[float], num_blocks: int) -> int:
    """Where the ascending throughputs of `num_blocks` blocks (at most all) are lexicographically
    smallest; the first of equals."""
    num_blocks = min(num_blocks, len(throughputs))
    return min(
        range(len(throughputs) - num_blocks + 1),
        key=lambda start: (sorted(throughputs[start : start + num_blocks]), start),
    )


@dataclass(frozen=True)
class PetalsServer:
    """A server as Petals announces it."""

    span: Span
    throughput: float
    """Tokens/s."""


def block_throughputs(servers: Mapping[PeerId, PetalsServer], num_blocks: int) -> list[float]:
    """For each block, the sum over its holders."""
    found = [0.0] * num_blocks
    for server in servers.values():
        for block in range(server.span.start, server.span.end):
            found[block] += server.throughput
    return found


def should_move(
    servers: Mapping[PeerId, PetalsServer],
    peer: PeerId,
    num_blocks: int,
    rng: random.Random,
    balance_quality: float = BALANCE_QUALITY,
) -> Span | None:
    """Where `peer` should go, or None: Petals' `should_choose_other_blocks`.

    It imagines itself away, moves to its best start, lets all others answer in random order until
    nobody moves, and goes if the weakest block was less than `balance_quality` of what it then is.
    Never if its blocks would be left without a server. Above 1 it always goes.
    """
    initial = min(block_throughputs(servers, num_blocks))
    imagined: MutableMapping[PeerId, PetalsServer] = dict(servers)
    mine = imagined[peer]
    alone = dict(imagined)
    alone[peer] = PetalsServer(mine.span, -_OWN_SHARE * mine.throughput)
    without = block_throughputs(alone, num_blocks)
    if balance_quality > 1.0:
        return _best_span(without, len(mine.span))
    if initial > _OWN_SHARE and min(without) <= 0:
        return None
    target = _best_span(without, len(mine.span))
    if target == mine.span:
        return None
    imagined[peer] = PetalsServer(target, mine.throughput)
    moved = True
    peers = list(imagined)
    for _ in range(len(peers) + 10):
        if not moved:
            break
        moved = False
        rng.shuffle(peers)
        for other in peers:
            moved |= _answer(imagined, other, num_blocks)
    reached = min(block_throughputs(imagined, num_blocks))
    if reached < initial or reached < _OWN_SHARE:
        return None
    return target if initial / reached < balance_quality - _OWN_SHARE else None


def _answer(servers: MutableMapping[PeerId, PetalsServer], peer: PeerId, num_blocks: int) -> bool:
    server = servers[peer]
    others = dict(servers)
    others[peer] = PetalsServer(server.span, -_OWN_SHARE * server.throughput)
    span = _best_span(block_throughputs(others, num_blocks), len(server.span))
    servers[peer] = PetalsServer(span, server.throughput)
    return span != server.span


def _best_span(throughputs: Sequence[float], num_blocks: int) -> Span:
    start = weakest_start(throughputs, num_blocks)
    return Span(start, start + num_blocks)


class PetalsPlacement:
    """Petals' greedy rule; servers join in random order, or the fastest first.

    `rebalance`: afterwards each server asks itself once more, in random order, until nobody wants
    to move (the 0.75 rule).
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        cache_tokens: int = CACHE_TOKENS,
        reserve_bytes: float = 0.0,
        fastest_first: bool = False,
        rebalance: bool = True,
        measured_rps: Mapping[PeerId, tuple[float, float]] | None = None,
    ) -> None:
        """`reserve_bytes`: kept free on each machine (Petals: 2 GiB for a hidden size of 14336);
        `measured_rps`: tokens/s of one block and of the network, where they were measured."""
        self._rng = rng
        self._cache_tokens = cache_tokens
        self._reserve_bytes = reserve_bytes
        self._fastest_first = fastest_first
        self._rebalance = rebalance
        self._measured_rps = measured_rps or {}

    def place(self, inventory: Inventory, workload: Workload) -> Layout:
        """Raises MemoryShortError when too few blocks fit."""
        num_blocks = inventory.model.num_blocks
        joining = list(inventory.machines)
        self._rng.shuffle(joining)
        if self._fastest_first:
            joining.sort(key=lambda machine: machine.speed.decode_s(1))
        servers: dict[PeerId, PetalsServer] = {}
        for machine in joining:
            count = self.num_blocks(inventory, machine)
            if count < 1:
                continue
            rates = self._measured_rps.get(machine.peer) or _rates(inventory, machine)
            throughput = petals_throughput(machine, count, *rates)
            span = _best_span(block_throughputs(servers, num_blocks), count)
            servers[machine.peer] = PetalsServer(span, throughput)
        if self._rebalance:
            self._settle(servers, num_blocks)
        layout = Layout(num_blocks, {peer: server.span for peer, server in servers.items()})
        if missing := layout.missing():
            each = self._block_bytes(inventory)
            lacking = sum(map(len, missing))
            raise MemoryShortError(
                f"Petals' rule leaves blocks {', '.join(map(str, missing))} of {num_blocks} without"
                f" a host: about {in_gb(lacking * each)} more are needed "
                f"({in_gb(each)} a block with its cache)"
            )
        return layout

    def num_blocks(self, inventory: Inventory, machine: Machine) -> int:
        """What fits beside a cache that knows nothing of the number of sessions."""
        limit = inventory.model.num_blocks
        if machine.max_blocks is not None:
            limit = min(limit, machine.max_blocks)
        each = self._block_bytes(inventory)
        return min(limit, int(fitting(machine.memory_bytes, self._reserve_bytes, each)))

    def _block_bytes(self, inventory: Inventory) -> float:
        model = inventory.model
        return model.block_bytes + model.cache_bytes_per_token * self._cache_tokens

    def _settle(self, servers: dict[PeerId, PetalsServer], num_blocks: int) -> None:
        peers = list(servers)
        for _ in range(10):
            self._rng.shuffle(peers)
            moved = False
            for peer in peers:
                span = should_move(servers, peer, num_blocks, self._rng)
                if span is not None:
                    servers[peer] = PetalsServer(span, servers[peer].throughput)
                    moved = True
            if not moved:
                return


def petals_throughput(
    machine: Machine, num_blocks: int, forward_rps: float, network_rps: float
) -> float:
    """`min(forward_rps / ((blocks + 1) / 2), network_rps)`, tokens/s."""
    share = RELAY_SHARE if machine.relayed else 1.0
    return min(forward_rps / ((num_blocks + 1) / 2), network_rps * share)


def _rates(inventory: Inventory, machine: Machine) -> tuple[float, float]:
    """What Petals would measure: tokens/s of a prompt in one block, and over the network."""
    forward_s = machine.speed.prefill_s(1, _FORWARD_TOKENS) / _FORWARD_TOKENS
    forward_s = forward_s or machine.speed.decode_s(1)
    per_byte = inventory.network.seconds_per_byte(machine.peer) or 1 / _DEFAULT_BYTES_PER_S
    network_s = per_byte * inventory.model.activation_bytes
    return (
        1 / forward_s if forward_s > 0 else math.inf,
        1 / network_s if network_s > 0 else math.inf,
    )
