"""How well each block of a model is served, and where one more server helps most.

A server shares its time among its blocks: `m` blocks of `tau` seconds each are passed by `1 / (m
tau)` tokens a second, and a block is passed by as many tokens as all its holders together. What a
swarm lacks is measured by the root of the mean square of the blocks' times: a weak block counts
more than its share, and a block that nobody holds more than all others. Every server that moves to
where this figure falls lowers the same figure for all, so moves that have to lower it by a margin
come to an end: they are the moves of a potential game.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swarm.errors import BadSpanError
from swarm.routing.network import Floats
from swarm.routing.view import Numerics, ServerState, ServerView, SwarmView
from swarm.spans import PeerId, Span

NOBODY_S = 1e6
"""The time of a block that nobody holds, in seconds a token."""
UNMEASURED_MS = 10.0
"""Of a block, where no server has measured itself yet."""
MAX_TRUSTED = 8.0
"""A server that announces to be so many times faster than the median counts as that fast."""


@dataclass(frozen=True)
class Holder:
    """A server that holds blocks, or will soon."""

    peer: PeerId
    span: Span
    numerics: Numerics
    rate: float
    """Tokens a second through its whole span."""


def holders(view: SwarmView, without: Iterable[PeerId] = ()) -> list[Holder]:
    """Who holds what, or will soon: servers that load count, and those that are about to move
    count where they go. One whose speed is not known counts as the median of the others."""
    absent = frozenset(without)
    present = [
        (server, span)
        for server in view.servers
        if server.checkpoint == view.checkpoint and server.peer not in absent
        if (span := _place(server)) is not None and span.end <= view.num_blocks
    ]
    usual = usual_ms(view)
    return [
        Holder(
            server.peer,
            span,
            server.numerics,
            rate_of(server.decode_ms_per_block, len(span), usual),
        )
        for server, span in present
    ]


def _place(server: ServerView) -> Span | None:
    if server.state in (ServerState.ONLINE, ServerState.JOINING):
        return server.moving_to or server.span
    return server.moving_to if server.state is ServerState.DRAINING else None


def usual_ms(view: SwarmView) -> float:
    """The median of what servers announce for a token in a block."""
    measured = [one.decode_ms_per_block for one in view.servers if one.decode_ms_per_block > 0]
    return median(measured) if measured else UNMEASURED_MS


def rate_of(decode_ms_per_block: float, blocks: int, usual: float) -> float:
    """Tokens a second through `blocks`; `usual`: ms a block, for who has not measured itself."""
    ms = max(decode_ms_per_block, usual / MAX_TRUSTED) if decode_ms_per_block > 0 else usual
    return 1e3 / (ms * blocks)


def block_rates(present: Sequence[Holder], num_blocks: int) -> Floats:
    """`[num_blocks]`: tokens a second, all holders together."""
    steps = np.zeros(num_blocks + 1)
    for one in present:
        steps[one.span.start] += one.rate
        steps[one.span.end] -= one.rate
    rates: Floats = np.cumsum(steps[:-1])
    # What is left of sums of opposite signs is no rate.
    held = np.zeros(num_blocks + 1, dtype=np.intp)
    for one in present:
        held[one.span.start] += 1
        held[one.span.end] -= 1
    return np.where(np.cumsum(held[:-1]) > 0, rates, 0.0)


def weakness_s(rates: Floats) -> float:
    """The root of the mean square of the blocks' times, seconds a token; the less the better."""
    return float(np.sqrt(np.mean(_times_s(rates) ** 2)))


def best_span(rates: Floats, size: int, rate: float) -> Span:
    """Where one more server of `size` blocks and this `rate` leaves the least `weakness_s`; among
    equals the first. A `size` beyond the model takes all of it.

    Raises BadSpanError when there is nothing to take.
    """
    if size < 1 or not len(rates):
        raise BadSpanError(
            f"cannot place {size} of {len(rates)} blocks; a server holds at least one block"
        )
    size = min(size, len(rates))
    lacking = _windows(rates == 0, size)
    gained = np.where(rates > 0, _times_s(rates) ** 2 - _times_s(rates + rate) ** 2, 0.0)
    saved = _windows(gained, size)
    saved = np.where(lacking == lacking.max(), saved, -1.0)
    # Sums differ in their last digits where windows are equal.
    start = int(np.flatnonzero(saved >= saved.max() * (1 - 1e-9))[0])
    return Span(start, start + size)


def place_server(
    view: SwarmView,
    size: int,
    decode_ms_per_block: float,
    numerics: Numerics,
    without: Iterable[PeerId] = (),
) -> Span:
    """The blocks for a server that joins: where the swarm is weakest.

    Chains are made of servers that compute alike: what counts first is who computes as it does.
    `decode_ms_per_block`: its own, 0 if it is not known. Raises BadSpanError.
    """
    present = holders(view, without)
    alike = [one for one in present if one.numerics == numerics]
    rate = rate_of(decode_ms_per_block, min(max(1, size), view.num_blocks), usual_ms(view))
    return best_span(block_rates(alike or present, view.num_blocks), size, rate)


def _windows(values: NDArray[Any], size: int) -> Floats:
    """`[blocks - size + 1]`: the sum over each run of `size`."""
    summed = np.concatenate([[0.0], np.cumsum(values)])
    found: Floats = summed[size:] - summed[:-size]
    return found


def _times_s(rates: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        times: Floats = np.where(rates > 0, 1 / rates, NOBODY_S)
    return times
