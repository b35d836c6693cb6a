"""Round trips to servers that were never asked, before a route is chosen among them."""

import asyncio
import random
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from swarm.client.agreement import contested
from swarm.errors import PeerError
from swarm.spans import PeerId, Span, missing_spans

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm
    from swarm.dht.records import ServerRecord

MAX_PROBED = 8
MANY_PROBED = 32
"""Servers that are asked at once after one was chosen that was not there."""
TIMEOUT_S = 1.0
"""How long the probed have to answer while some blocks have nobody who did."""
SPARE_S = 0.2
"""How long the others have at least once all blocks have somebody; or as long again as that took:
who is farther away than that is no better choice."""


async def silent_servers(
    swarm: "Swarm",
    records: "Sequence[ServerRecord]",
    wanted: Collection[Span],
    most: int = MAX_PROBED,
) -> set[PeerId]:
    """Connect to some of the servers that we have no round trip of, if there is a choice.

    `wanted`: the runs of blocks that somebody is looked for, apart from each other. Afterwards
    `swarm.rtt_s` has those that answered. Returns those that were asked and did not.

    At most `most` are asked. Where servers announce different contents of a block, half of those
    are among them, so that who is there counts for more than who is only announced.
    """
    spans = {record.peer: record.span for record in records if shared(record.span, wanted)}
    records = [record for record in records if record.peer in spans]
    if sum(shared(span, wanted) for span in spans.values()) <= sum(map(len, wanted)):
        return set()
    answered = set(swarm.rtt_s(list(spans)))
    unknown = [record for record in records if record.peer not in answered]
    probed = _sample(unknown, contested(records), most)
    if not probed:
        return set()
    doubted = swarm.doubted(records)
    tasks = {
        asyncio.ensure_future(swarm.connect(record, TIMEOUT_S)): record.peer for record in probed
    }
    try:
        answered |= await _answers(tasks, answered, spans, wanted, doubted)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    # The first ping leaves with the hello.
    await asyncio.sleep(0.02)
    return set(tasks.values()) - answered


def _sample(
    unknown: "Sequence[ServerRecord]", contested: Collection[PeerId], most: int
) -> "list[ServerRecord]":
    among = [record for record in unknown if record.peer in contested]
    first = random.sample(among, min(most // 2, len(among)))
    taken = {record.peer for record in first}
    others = [record for record in unknown if record.peer not in taken]
    return first + random.sample(others, min(most - len(first), len(others)))


async def _answers(
    tasks: dict[asyncio.Task[None], PeerId],
    known: set[PeerId],
    spans: dict[PeerId, Span],
    wanted: Collection[Span],
    doubted: Collection[PeerId],
) -> set[PeerId]:
    """Who was reached in time, and who was known; the `doubted` are no reason to wait less."""
    loop = asyncio.get_running_loop()
    began, enough = loop.time(), False
    ends = began + TIMEOUT_S
    reached = {peer: spans[peer] for peer in known}
    pending = set(tasks)
    while pending:
        agreed = [span for peer, span in reached.items() if peer not in doubted]
        if not enough and covered(agreed, wanted):
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


def shared(span: Span, wanted: Collection[Span]) -> int:
    """How many of the wanted blocks `span` has."""
    return sum(max(0, min(span.end, one.end) - max(span.start, one.start)) for one in wanted)


def covered(spans: Collection[Span], wanted: Collection[Span]) -> bool:
    """Whether `spans` have all of the wanted blocks."""
    gaps = missing_spans(list(spans), max((one.end for one in wanted), default=0))
    return not any(shared(gap, wanted) for gap in gaps)
