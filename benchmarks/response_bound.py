"""What no policy can do better: a bound of the mean response of requests that share caches.

A request takes one of several ways. Each lasts so long, and uses so much of pools (sessions that
caches hold) from its start to its end. When pools are scarce a request waits, or takes a way that
lasts longer. The least total response is that of an integer program over starting times; its
Lagrangian relaxation puts a price on every pool at every moment, and each request then finds its
cheapest way and start alone. Whatever the prices, what they find less what the pools cost is a
bound (as for other scheduling problems: Dyer and Wolsey, 1990; van den Akker et al., 2000). The
prices are improved by subgradient steps.

Nothing is assumed of the policy: it may know all arrivals and lengths in advance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from networks import Floats

_BIN_S = 0.5
_WINDOW_S = 20.0
"""After its arrival in which a request's start is looked for first."""
_STEPS, _PATIENCE = 150, 8


@dataclass(frozen=True)
class Way:
    """One kind of chain."""

    lasts_s: Floats
    """`[requests]`."""
    uses: tuple[float, ...]
    """Of each pool, in sessions."""


def least_mean_response_s(
    arrivals_s: Sequence[float],
    ways: Sequence[Way],
    pools: Sequence[float],
    *,
    reached_s: float,
    enough_s: float = np.inf,
) -> float:
    """No policy has a lower mean response. Seconds.

    `pools`: sessions that each holds at once; `reached_s`: a mean response that some policy has
    (the steps are sized by it); `enough_s`: a bound that is not improved further.
    """
    market = _Market(np.array(arrivals_s), ways, np.array(pools, dtype=np.float64))
    prices = np.zeros((len(pools), market.bins))
    best_s, best, stalled, share = 0.0, prices, 0, 1.0
    for _ in range(_STEPS):
        bound_s, excess = market.bound_s(prices)
        if bound_s > best_s:
            best_s, best, stalled = bound_s, prices, 0
        else:
            stalled += 1
        if best_s >= min(enough_s, reached_s):
            break
        if stalled > _PATIENCE:
            prices, stalled, share = best, 0, share / 2
            bound_s, excess = market.bound_s(prices)
        slope = np.where((prices > 0) | (excess > 0), excess, 0.0)
        if not slope.any():
            break
        gap_s = (reached_s - bound_s) * len(arrivals_s)
        prices = np.maximum(0.0, prices + share * gap_s / (_BIN_S * (slope**2).sum()) * slope)
    return best_s


class _Market:
    """Requests, their ways, and pools whose prices change every `_BIN_S`."""

    def __init__(self, arrivals_s: Floats, ways: Sequence[Way], pools: Floats) -> None:
        self._arrivals_s = arrivals_s
        self._ways = ways
        self._pools = pools
        longest_s = max(float(way.lasts_s.max()) for way in ways)
        self.bins = int((arrivals_s.max() + 2 * longest_s + 2 * _WINDOW_S) / _BIN_S) + 1
        self._edges_s = np.arange(self.bins + 1) * _BIN_S

    def bound_s(self, prices: Floats) -> tuple[float, Floats]:
        """`prices`: `[pools, bins]`, seconds of response for a session and second. The bound of the
        mean response, and by how many sessions `[pools, bins]` the requests exceed the pools."""
        window_s = _WINDOW_S
        while True:
            response_s, start_s, chosen = self._answers(prices, window_s)
            # Who starts later than the window waits longer than that already.
            if (response_s <= window_s).all() or window_s > self._edges_s[-1]:
                break
            window_s *= 2
        total_s = float(response_s.sum()) - _BIN_S * float((prices.sum(axis=1) * self._pools).sum())
        used = np.zeros_like(prices)
        for number, way in enumerate(self._ways):
            mine = chosen == number
            begun_s = self._edges_s[None, :] - start_s[mine][:, None]
            passed_s = np.clip(begun_s, 0.0, way.lasts_s[mine][:, None]).sum(axis=0)
            used += np.array(way.uses)[:, None] * (np.diff(passed_s) / _BIN_S)[None, :]
        return total_s / len(self._arrivals_s), used - self._pools[:, None]

    def _answers(self, prices: Floats, window_s: float) -> tuple[Floats, Floats, Floats]:
        """`[requests]` each: the least response with what it pays, its start, and its way.

        What a way costs is linear in the start between the moments at which the price at its start
        or at its end changes, so the best start is one of these, or the arrival.
        """
        arrivals_s = self._arrivals_s[:, None]
        steps_s = np.arange(int(window_s / _BIN_S) + 1) * _BIN_S
        best_s = np.full(len(self._arrivals_s), np.inf)
        start_s, chosen = np.zeros_like(best_s), np.zeros_like(best_s)
        for number, way in enumerate(self._ways):
            lasts_s = way.lasts_s[:, None]
            paid_s = np.concatenate([[0.0], np.cumsum(np.array(way.uses) @ prices) * _BIN_S])
            first_s = np.ceil(arrivals_s / _BIN_S) * _BIN_S
            first_end_s = np.ceil((arrivals_s + lasts_s) / _BIN_S) * _BIN_S
            starts_s = np.hstack([arrivals_s, first_s + steps_s, first_end_s - lasts_s + steps_s])
            cost_s = starts_s - arrivals_s + lasts_s
            cost_s = cost_s + np.interp(starts_s + lasts_s, self._edges_s, paid_s)
            cost_s -= np.interp(starts_s, self._edges_s, paid_s)
            at = cost_s.argmin(axis=1)
            rows = np.arange(len(at))
            least_s = cost_s[rows, at]
            better = least_s < best_s
            best_s[better] = least_s[better]
            start_s[better] = starts_s[rows, at][better]
            chosen[better] = number
        return best_s, start_s, chosen
