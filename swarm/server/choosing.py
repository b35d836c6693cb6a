"""Which blocks a server takes that was told none: where the swarm is weakest."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

from swarm.routing.coverage import place_server
from swarm.routing.view import Numerics, ServerState, SwarmView
from swarm.spans import PeerId, Span

logger = logging.getLogger("swarm.server")

FIRST_LOOK_S = 0.5
"""Servers that are started together do not look at the same moment."""
LOOK_AGAIN_S = (0.3, 0.8)
MAX_LOOKS = 12
CALM_LOOKS = 2
"""So many looks in a row have to leave the choice as it is."""


async def agree_on_span(
    me: PeerId,
    size: int,
    decode_ms_per_block: float,
    numerics: Numerics,
    read: Callable[[], Awaitable[SwarmView]],
    announce: Callable[[Span], Awaitable[bool]],
    rng: random.Random,
) -> Span:
    """Chooses, announces the choice, and looks whether others that are joining now chose the same:
    of these the one with the smaller peer id stays. What is left of that, moves mend later.

    `size`: blocks that fit; `read`: the swarm now; `announce`: the choice, as joining.
    """

    def best(view: SwarmView) -> Span:
        return place_server(view, size, decode_ms_per_block, numerics, (me,))

    await asyncio.sleep(FIRST_LOOK_S * rng.random())
    view = await read()
    earlier = {one.peer for one in view.servers}
    span = best(view)
    await announce(span)
    calm = 0
    for _ in range(MAX_LOOKS):
        await asyncio.sleep(rng.uniform(*LOOK_AGAIN_S))
        view = await read()
        standing = tuple(
            one
            for one in view.servers
            if one.state is not ServerState.JOINING or one.peer in earlier or one.peer < me
        )
        chosen = best(replace(view, servers=standing))
        calm = calm + 1 if chosen == span else 0
        if calm >= CALM_LOOKS:
            break
        if chosen != span:
            logger.info("others join at blocks %s; %s are taken instead", span, chosen)
            span = chosen
            await announce(span)
    return span
