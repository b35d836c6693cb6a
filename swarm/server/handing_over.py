"""A server that leaves asks its clients to move their sessions, not all of them at once."""

import asyncio
from collections.abc import Callable

from swarm.sessions.hop import HopSession

AT_ONCE = 1
"""Sessions that move at the same time: each of them is computed again on another server, and the
sessions that wait there for their turn would wait for all. A session has moved when its client ends
it here, which it does when the others hold everything."""
PATIENCE_S = 2.0
"""How long a session may take before the next one is asked."""
POLL_S = 0.02


async def hand_over(
    sessions: Callable[[], list[HopSession]], tell: Callable[[HopSession], object]
) -> None:
    """Tells each of `sessions()` once that the server leaves; returns when all are told.

    A session that nobody else can take stays, and is waited for by the caller.
    """
    loop = asyncio.get_running_loop()
    told: set[HopSession] = set()
    moving: dict[HopSession, float] = {}
    while waiting := [hop for hop in sessions() if hop not in told]:
        now = loop.time()
        moving = {
            hop: since
            for hop, since in moving.items()
            if not hop.freed and now - since < PATIENCE_S
        }
        for hop in waiting[: AT_ONCE - len(moving)]:
            told.add(hop)
            moving[hop] = now
            tell(hop)
        await asyncio.sleep(POLL_S)
