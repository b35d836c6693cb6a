"""What a path delivers at once beyond its rate."""

import random

import pytest

from swarm.scheduling.bursts import MOST_S, Bursts

RATE = 1e6
PIECE = 10_000
MEMORY_S = 0.5


def test_a_steady_path_has_none() -> None:
    bursts = Bursts()
    for number in range(1000):
        bursts.add(PIECE, RATE, MEMORY_S, number * PIECE / RATE)
        assert bursts.beyond(PIECE) == 0


@pytest.mark.parametrize("slower", [0.96, 1.0, 1.5])
def test_a_rate_that_is_found_a_little_too_low_makes_none(slower: float) -> None:
    bursts = Bursts()
    for number in range(100_000):
        bursts.add(PIECE, slower * RATE, MEMORY_S, number * PIECE / RATE)
    assert bursts.beyond(PIECE) == 0


def test_what_was_held_up_and_comes_at_once_counts_for_a_while() -> None:
    bursts = Bursts()
    bursts.add(PIECE, RATE, MEMORY_S, 0.0)
    for _ in range(5):
        bursts.add(PIECE, RATE, MEMORY_S, 0.05)  # what 50 ms bring, all of it at the end of them
    assert bursts.beyond(PIECE) == 4 * PIECE
    bursts.add(PIECE, RATE, MEMORY_S, 0.05 + MEMORY_S)
    assert bursts.beyond(PIECE) == 4 * PIECE
    bursts.add(PIECE, RATE, MEMORY_S, 0.06 + MEMORY_S)
    assert bursts.beyond(PIECE) == 0


@pytest.mark.parametrize("seed", range(50))
def test_no_burst_counts_for_more_than_its_bound(seed: int) -> None:
    draw = random.Random(seed)
    bursts, now = Bursts(), 0.0
    for _ in range(2000):
        now += draw.choice([0.0, 0.0, draw.expovariate(20)])
        bursts.add(draw.randrange(1, 200_000), RATE, MEMORY_S, now)
        assert 0 <= bursts.beyond(PIECE) <= RATE * MOST_S
