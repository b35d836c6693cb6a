"""Network coordinates: delays between peers that never measured each other."""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.errors import UsageError

DIMENSIONS = 3
_ERROR_SHARE = 0.25
_FORCE_SHARE = 0.25
"""`c_e` and `c_c` of the paper."""
_MIN_HEIGHT_S = 1e-4
_GRAVITY_S = 0.256
"""How far from the origin the pull back to it equals a whole step (Ledlie et al., NSDI 2007)."""
_SAMPLES_KEPT = 5


@dataclass(frozen=True)
class Coordinate:
    """A place in a space in which distances are round trips."""

    position_s: tuple[float, ...] = (0.0,) * DIMENSIONS
    height_s: float = _MIN_HEIGHT_S
    """Of the way from the peer to the core of the network and back (a home's uplink)."""
    error: float = 1.0
    """How wrong it is believed to be, relative; 1: not known at all."""

    def __post_init__(self) -> None:
        values = (*self.position_s, self.height_s, self.error)
        if not all(map(math.isfinite, values)) or self.height_s < 0 or not 0 <= self.error <= 2:
            raise UsageError("a network coordinate that is no place")

    def rtt_s(self, other: "Coordinate") -> float:
        """The predicted round trip."""
        apart = math.dist(self.position_s, other.position_s)
        return apart + self.height_s + other.height_s


class Vivaldi:
    """Finds our own coordinate from round trips to peers that tell theirs.

    Dabek et al., "Vivaldi: a decentralized network coordinate system" (SIGCOMM 2004): a spring
    between the two peers, moved in proportion to how sure each is of its place, with heights.
    From Ledlie et al., "Network coordinates in the wild" (NSDI 2007): of each peer the least of the
    last few samples counts (a median would do for symmetric noise, but queues only add), and a weak
    pull to the origin keeps all from drifting.
    """

    def __init__(self, rng: random.Random, dimensions: int = DIMENSIONS) -> None:
        self.coordinate = Coordinate((0.0,) * dimensions)
        self._rng = rng
        self._recent: dict[str, deque[float]] = {}

    def observe(self, peer: str, rtt_s: float, theirs: Coordinate) -> Coordinate:
        """Take one measured round trip to `peer`, whose coordinate is `theirs`.

        Returns our new coordinate. What is not possible (negative, not finite, other dimensions) is
        ignored: others' coordinates are not trusted.
        """
        mine = self.coordinate
        if not 0 < rtt_s < 60 or len(theirs.position_s) != len(mine.position_s):
            return mine
        recent = self._recent.setdefault(peer, deque(maxlen=_SAMPLES_KEPT))
        recent.append(rtt_s)
        sample_s = min(recent)
        weight = mine.error / max(mine.error + theirs.error, 1e-9)
        predicted_s = mine.rtt_s(theirs)
        relative = abs(predicted_s - sample_s) / sample_s
        share = _ERROR_SHARE * weight
        error = min(1.0, max(1e-3, relative * share + mine.error * (1 - share)))
        force_s = _FORCE_SHARE * weight * (sample_s - predicted_s)
        direction, apart_s = self._direction(mine.position_s, theirs.position_s)
        length_s = max(apart_s + mine.height_s + theirs.height_s, 1e-9)
        position = [
            at + force_s * unit * apart_s / length_s if apart_s > 0 else at + force_s * unit
            for at, unit in zip(mine.position_s, direction, strict=True)
        ]
        height_s = mine.height_s + force_s * (mine.height_s + theirs.height_s) / length_s
        self.coordinate = Coordinate(_pulled_home(position), max(_MIN_HEIGHT_S, height_s), error)
        return self.coordinate

    def forget(self, peer: str) -> None:
        """Drop the samples of a peer that has left."""
        self._recent.pop(peer, None)

    def _direction(
        self, mine: Sequence[float], theirs: Sequence[float]
    ) -> tuple[list[float], float]:
        """The unit vector away from them, any one if we stand at the same place."""
        apart = math.dist(mine, theirs)
        if apart > 1e-9:
            return [(a - b) / apart for a, b in zip(mine, theirs, strict=True)], apart
        random_way = [self._rng.gauss(0, 1) for _ in mine]
        length = math.hypot(*random_way) or 1.0
        return [value / length for value in random_way], 0.0


def _pulled_home(position: Sequence[float]) -> tuple[float, ...]:
    distance = math.hypot(*position)
    if distance < 1e-12:
        return tuple(position)
    pull_s = (distance / _GRAVITY_S) ** 2 * 1e-4
    return tuple(value * max(0.0, 1 - pull_s / distance) for value in position)
