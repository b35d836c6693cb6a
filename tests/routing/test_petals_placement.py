"""Petals' rule: how many blocks, where, and when a server moves."""

import random

import pytest
from inventories import BLOOM, bloom_machine, inventory

from swarm.routing.placements.petals import (
    PetalsPlacement,
    PetalsServer,
    should_move,
    weakest_start,
)
from swarm.spans import PeerId, Span

RESERVE = 2 * 2**30


@pytest.mark.parametrize(
    ("memory_gb", "mig", "blocks"),
    [
        (79.13, False, 49),
        (84.97, False, 53),
        (86.13, False, 53),
        (8.2, True, 3),
        (9.1, True, 4),
        (10.2, True, 4),
    ],
)
def test_petals_numbers_of_blooms_blocks(memory_gb: float, mig: bool, blocks: int) -> None:
    one = bloom_machine(memory_gb, mig)
    placement = PetalsPlacement(random.Random(0), reserve_bytes=RESERVE)
    assert placement.num_blocks(inventory(BLOOM, one), one) == blocks


def test_the_weakest_window() -> None:
    assert weakest_start([3, 1, 2, 1, 5], 2) == 1
    assert weakest_start([0, 0, 0], 1) == 0
    assert weakest_start([5, 5, 1, 9, 1], 1) == 2


def test_a_server_moves_when_the_weakest_block_gains_a_quarter() -> None:
    def swarm(strong: float) -> dict[PeerId, PetalsServer]:
        return {
            PeerId("a"): PetalsServer(Span(0, 5), strong),
            PeerId("b"): PetalsServer(Span(0, 5), strong),
            PeerId("c"): PetalsServer(Span(5, 10), 1.0),
        }

    # from (2, 2 | 1) to (1 | 2): the weakest block stays at 1: nobody moves
    assert should_move(swarm(1.0), PeerId("b"), 10, random.Random(0)) is None
    # from (6 | 1) to (3 | 4): 1/3 < 0.75
    assert should_move(swarm(3.0), PeerId("b"), 10, random.Random(0)) == Span(5, 10)
    # from (2.4 | 1) to (1.2 | 2.2): 1/1.2 is not enough
    assert should_move(swarm(1.2), PeerId("b"), 10, random.Random(0)) is None
    assert should_move(swarm(1.4), PeerId("b"), 10, random.Random(0)) == Span(5, 10)


def test_nobody_leaves_a_hole() -> None:
    servers = {
        PeerId("a"): PetalsServer(Span(0, 5), 9.0),
        PeerId("c"): PetalsServer(Span(5, 10), 1.0),
    }
    assert should_move(servers, PeerId("a"), 10, random.Random(0)) is None
