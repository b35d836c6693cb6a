"""What a path delivers at once beyond its rate."""

import random

import pytest

from swarm.scheduling.bursts import MAX_S, Bursts

RATE = 1e6
PIECE = 10_000
INTERVAL_S = 0.05


def test_a_steady_path_has_none() -> None:
    bursts = Bursts()
    for number in range(1000):
        bursts.add(PIECE, RATE, INTERVAL_S, number * PIECE / RATE)
        assert bursts.beyond(PIECE) == 0


@pytest.mark.parametrize("slower", [0.96, 1.0, 1.5])
def test_a_rate_that_is_found_a_little_too_low_makes_none(slower: float) -> None:
    bursts = Bursts()
    for number in range(100_000):
        bursts.add(PIECE, slower * RATE, INTERVAL_S, number * PIECE / RATE)
    assert bursts.beyond(PIECE) == 0


def held_up(bursts: Bursts, turns: int, every: int, began: float = 0.0) -> float:
    """What 50 ms bring comes at their end in each turn of so many, else evenly; when it is over."""
    for turn in range(turns):
        for piece in range(1, 6):
            late = turn % every == 0
            now = began + 0.05 * turn + (0.05 if late else 0.01 * piece)
            bursts.add(PIECE, RATE, INTERVAL_S, now)
    return began + 0.05 * turns


def test_what_is_held_up_most_of_the_time_counts_as_long_as_it_is() -> None:
    bursts = Bursts()
    ended = held_up(bursts, turns=20, every=1)
    assert bursts.beyond(PIECE) == 4 * PIECE
    held_up(bursts, turns=20, every=100, began=ended)
    assert bursts.beyond(PIECE) == 0


def test_a_pause_now_and_then_does_not_count() -> None:
    bursts = Bursts()
    held_up(bursts, turns=100, every=10)
    assert bursts.beyond(PIECE) == 0


@pytest.mark.parametrize("seed", range(50))
def test_no_burst_counts_for_more_than_its_bound(seed: int) -> None:
    draw = random.Random(seed)
    bursts, now = Bursts(), 0.0
    for _ in range(2000):
        now += draw.choice([0.0, 0.0, draw.expovariate(20)])
        bursts.add(draw.randrange(1, 200_000), RATE, INTERVAL_S, now)
        assert 0 <= bursts.beyond(PIECE) <= RATE * MAX_S
