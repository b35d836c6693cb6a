"""The bound of the mean response beside schedules that are known to be best."""

import heapq
import itertools
import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from response_bound import Way, least_mean_response_s


def in_line_s(arrivals: list[float], lasts_s: float, slots: int) -> float:
    """Equal requests, first come first served: nobody can do better."""
    free = [0.0] * slots
    total = 0.0
    for at in arrivals:
        begun = max(at, heapq.heappop(free))
        heapq.heappush(free, begun + lasts_s)
        total += begun + lasts_s - at
    return total / len(arrivals)


def two_speeds_s(arrivals: list[float], fast_s: float, slow_s: float) -> float:
    """The best of all ways to serve them with one fast slot and one slow one, in their order."""
    best = float("inf")
    for choice in itertools.product((0, 1), repeat=len(arrivals)):
        free = [0.0, 0.0]
        total = 0.0
        for at, slot in zip(arrivals, choice, strict=True):
            free[slot] = max(at, free[slot]) + (fast_s, slow_s)[slot]
            total += free[slot] - at
        best = min(best, total)
    return best / len(arrivals)


@pytest.mark.parametrize("load", [0.3, 1.5])
def test_equal_requests_before_equal_slots(load: float) -> None:
    rng, slots, lasts_s = random.Random(2), 6, 3.4
    arrivals = [0.0]
    for _ in range(99):
        arrivals.append(arrivals[-1] + rng.expovariate(load * slots / lasts_s))
    best = in_line_s(arrivals, lasts_s, slots)
    way = Way(np.full(100, lasts_s), (1.0,))
    found = least_mean_response_s(arrivals, [way], [slots], reached_s=best)
    assert 0.94 * best <= found <= best * (1 + 1e-9)
    enough = least_mean_response_s(arrivals, [way], [100.0], reached_s=best)
    assert enough == pytest.approx(lasts_s)


@pytest.mark.parametrize("seed", range(3))
def test_no_choice_between_two_speeds_is_better(seed: int) -> None:
    rng = random.Random(seed)
    arrivals = sorted(rng.uniform(0.0, 12.0) for _ in range(9))
    best = two_speeds_s(arrivals, 2.0, 5.0)
    ways = [Way(np.full(9, 2.0), (1.0, 0.0)), Way(np.full(9, 5.0), (0.0, 1.0))]
    found = least_mean_response_s(arrivals, ways, [1, 1], reached_s=best)
    assert 0.75 * best <= found <= best * (1 + 1e-9)
