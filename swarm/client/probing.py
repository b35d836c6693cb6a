"""Round trips to servers that were never asked, before a route is chosen among them."""

import asyncio
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarm.errors import PeerError
from swarm.spans import PeerId, Span, missing_spans

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm
    from swarm.dht.records import ServerRecord

MAX_PROBED = 8
TIMEOUT_S = 1.0
"""How long the probed have to answer while some blocks have nobody who did."""
SPARE_S = 0.2
"""How long the others have at least once all blocks have somebody; or as long again as that took:
who is farther away than that is no better choice."""


async def silent_servers(
    swarm: "Swarm", records: "Sequence[ServerRecord]", num_blocks: int
) -> set[PeerId]:
    """Connect to some of the servers that we have no round trip of, if there is a choice.

    Afterwards `swarm.rtt_s` has those that answered. Returns those that were asked and did not.
    """
    spans = {record.peer: record.span for record in records}
    if sum(map(len, spans.values())) <= num_blocks:
        return set()
    answered = set(swarm.rtt_s(list(spans)))
    unknown = [record for record in records if record.peer not in answered]
    probed = random.sample(unknown, min(MAX_PROBED, len(unknown)))
    if not probed:
        return set()
    tasks = {
        asyncio.ensure_future(swarm.connect(record, TIMEOUT_S)): record.peer for record in probed
    }
    try:
        answered |= await _answers(tasks, {p: spans[p] for p in answered}, spans, num_blocks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    # The first ping leaves with the hello.
    await asyncio.sleep(0.02)
    return set(tasks.values()) - answered


async def _answers(
    tasks: dict[asyncio.Task[None], PeerId],
    known: dict[PeerId, Span],
    spans: dict[PeerId, Span],
    num_blocks: int,
) -> set[PeerId]:
    """Who was reached in time."""
    loop = asyncio.get_running_loop()
    began, enough = loop.time(), False
    ends = began + TIMEOUT_S
    reached = dict(known)
    pending = set(tasks)
    while pending:
        if not enough and not missing_spans(list(reached.values()), num_blocks):
            enough, now = True, loop.time()
            ends = min(ends, now + max(SPARE_S, now - began))
        if (left_s := ends - loop.time()) <= 0:
            break
        done, pending = await asyncio.wait(
            pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            error = task.exception()
            if error is None:
                reached[tasks[task]] = spans[tasks[task]]
            elif not isinstance(error, PeerError):
                raise error
    return set(reached)
