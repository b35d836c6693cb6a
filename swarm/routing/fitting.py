"""How many of something there is room for, in bytes that were added up from fractions."""

import numpy as np

from swarm.routing.network import Floats

_ROUNDING = 1e-12
"""Of a memory: less than a byte of 100 GB, and more than what sums of floats are off by."""


def fitting(memory: Floats | float, taken: Floats | float, each: Floats | float) -> Floats:
    """Wholes of `each` bytes that fit beside `taken` ones, at least 0; `each` is not 0.

    Three of 0.1 fit into 0.3, though 0.3 / 0.1 is less than 3 in floats; a byte too few is too few.
    """
    room = memory * (1 + _ROUNDING) - taken
    return np.maximum(np.floor(room / each), 0.0)
