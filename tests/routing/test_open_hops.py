"""Searching one graph of hops again and again, while hops are closed."""

from dataclasses import replace

import numpy as np
import pytest

from swarm.routing.hop_graph import HopCosts, OpenHops, cheapest_hops

BLOCKS = 12


def drawn(rng: np.random.Generator, servers: int) -> HopCosts:
    start = rng.integers(0, BLOCKS - 2, servers)
    end = np.minimum(BLOCKS, start + rng.integers(2, 8, servers))
    start[0], end[0] = 0, BLOCKS
    return HopCosts(
        num_blocks=BLOCKS,
        start=start,
        end=end,
        usable=rng.random(servers) < 0.9,
        enter_s=rng.random(servers),
        leave_s=rng.random(servers),
        fixed_s=rng.random(servers),
        block_s=rng.random(servers),
        between_s=rng.random((servers, servers)),
        wait_s=np.zeros((servers, BLOCKS + 1)),
    )


def checked_lengths(seed: int) -> set[int]:
    """How many hops the chains had that were found while hops were closed, until none was left."""
    rng = np.random.default_rng(seed)
    costs = drawn(rng, 20)
    hops = OpenHops(costs)
    fits = np.ones((20, BLOCKS + 1), dtype=np.bool_)
    lengths = set()
    for _ in range(60):
        chain = hops.cheapest()
        waits = np.where(fits, 0.0, np.inf)
        anew = cheapest_hops(replace(costs, wait_s=waits), add_waits=False, most_wait_s=0.0)
        if chain is None or anew is None:
            assert chain is anew
            return lengths
        assert chain == anew.chain
        lengths.add(len(chain.parts))
        # A server of the chain, and any other, from now on only takes shorter hops.
        part = chain.parts[int(rng.integers(len(chain.parts)))]
        for server, shorter in (
            (part.server, part.end - part.start),
            (int(rng.integers(20)), int(rng.integers(1, BLOCKS + 1))),
        ):
            fits[server, shorter:] = False
            hops.close(server, fits[server])
    pytest.fail("chains never end although hops are closed")


def test_what_is_found_is_what_a_new_search_finds() -> None:
    assert set.union(*map(checked_lengths, range(12))) >= {1, 2, 3}
