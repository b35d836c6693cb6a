"""Chains with room of their own: how much of the caches each gets, and what the queue before them
does to requests. Sun, He, Hou, arXiv 2604.14993."""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from swarm.errors import UsageError
from swarm.routing.hop_graph import HopCosts, HopLevels, OpenHops
from swarm.routing.layer_graph import Chain


def allocate_greedily(
    costs: HopCosts,
    free: Sequence[int],
    needed: Sequence[Sequence[int]] | NDArray[np.int64],
) -> list[tuple[Chain, int]]:
    """GCA: again and again the cheapest chain, with as many sessions as its caches still take.

    `free`: cache of each server; `needed`: of a session, for each number of blocks used. Arcs
    without room for one session are dropped. Returns chains with their capacities, cheapest first.
    """
    room = np.array(free, dtype=np.float64)
    want = np.array(needed, dtype=np.float64)
    chains: list[tuple[Chain, int]] = []
    hops = OpenHops(costs)
    fits = want <= room[:, None]
    for server in np.flatnonzero(~fits.all(axis=1)).tolist():
        hops.close(server, fits[server])
    while (chain := hops.cheapest()) is not None:
        uses = [(part.server, want[part.server, part.end - part.start]) for part in chain.parts]
        capacity = min(
            (int(room[server] / use + 1e-9) for server, use in uses if use > 0), default=1 << 20
        )
        chains.append((chain, capacity))
        if capacity == 1 << 20:
            break
        for server, use in uses:
            room[server] -= capacity * use
            hops.close(server, want[server] <= room[server])
    return chains


def disjoint_chains(costs: HopCosts) -> list[Chain]:
    """Again and again the cheapest chain over servers that are in no other one.

    First those that fit end to start (a chain that used a server in part would break up two of
    them), then whatever chains the servers that are left still make.
    """
    used = np.arange(costs.wait_s.shape[1])
    whole = used >= (costs.end - costs.start)[:, None]
    nothing = np.zeros(len(used), dtype=np.bool_)
    levels = HopLevels.of(costs)
    taken: list[int] = []
    chains: list[Chain] = []
    for fits in (whole, None):
        hops = OpenHops(costs, levels)
        if fits is not None:
            for server, fitting in enumerate(fits):
                hops.close(server, fitting)
        for server in taken:
            hops.close(server, nothing)
        while (chain := hops.cheapest()) is not None:
            chains.append(chain)
            for part in chain.parts:
                taken.append(part.server)
                hops.close(part.server, nothing)
    return chains


def mean_response_s(
    chains: Sequence[tuple[float, int]], rate_per_s: float, *, fastest_first: bool = True
) -> float:
    """Theorem 4: a bound of the mean response under JFFC, from a birth-death chain.

    `chains`: service time in seconds and capacity of each. With `n` requests there, deaths happen
    as if they were packed on the fastest chains (the lower bound), or on the slowest (the upper).
    Infinite when requests come faster than all slots together serve them.
    """
    if not rate_per_s > 0:
        raise UsageError(f"requests come at {rate_per_s} a second; give a positive rate")
    ordered = sorted(chains, reverse=not fastest_first)
    slots = [service_s for service_s, capacity in ordered for _ in range(capacity)]
    with np.errstate(divide="ignore"):
        deaths = np.cumsum(1.0 / np.array([each for each in slots if each < np.inf]))
        if not len(deaths) or rate_per_s >= deaths[-1]:
            return float("inf")
        # Logarithms: with thousands of slots the products leave the range of floats.
        weights = np.concatenate([[0.0], np.cumsum(np.log(rate_per_s / deaths))])
    weights = np.exp(weights - weights.max())
    states = np.arange(len(weights))
    ratio = rate_per_s / float(deaths[-1])
    tail = float(weights[-1]) * ratio / (1 - ratio)
    beyond = float(weights[-1]) * ratio * (states[-1] / (1 - ratio) + 1 / (1 - ratio) ** 2)
    jobs = (float((weights * states).sum()) + beyond) / (float(weights.sum()) + tail)
    return float(jobs / rate_per_s)


def burst_response_s(chains: Sequence[tuple[float, int]], requests: int) -> float:
    """Mean response of so many requests that come at one moment: each takes the slot on which it
    ends first. `chains`: service time in seconds and capacity of each; infinite without slots."""
    slots = [
        (service_s, service_s)
        for service_s, capacity in chains
        for _ in range(min(capacity, requests))
    ]
    if not slots:
        return float("inf")
    heapq.heapify(slots)
    total = 0.0
    for _ in range(requests):
        ends_s, service_s = slots[0]
        total += ends_s
        heapq.heapreplace(slots, (ends_s + service_s, service_s))
    return total / requests
