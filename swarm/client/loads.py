"""How busy servers are at this moment, asked before a route is chosen among them."""

import asyncio
import random
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from swarm.client.probing import shared
from swarm.client.routes import ClientRouter
from swarm.client.status import checked_status
from swarm.errors import PeerError
from swarm.spans import Span

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm
    from swarm.dht.records import ServerRecord

MAX_ASKED = 8
TIMEOUT_S = 0.5
FRESH_S = 0.25
"""Who was asked so lately is not asked again."""


async def ask_loads(
    swarm: "Swarm",
    router: ClientRouter,
    records: "Sequence[ServerRecord]",
    wanted: Collection[Span],
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Asks some of the servers with a link, if there is a choice; records are many seconds old, and
    clients that come one after another would all take the same of two replicas.

    `wanted`: the runs of blocks that somebody is looked for, apart from each other.
    """
    records = [record for record in records if shared(record.span, wanted)]
    if sum(shared(record.span, wanted) for record in records) <= sum(map(len, wanted)):
        return
    linked = swarm.rtt_s([record.peer for record in records])
    for peer in linked:
        if (rate := swarm.rate_bytes_per_s(peer)) is not None:
            router.saw_rate(peer, rate)
    asked = [
        record
        for record in records
        if record.peer in linked and not router.heard_lately(record.peer, FRESH_S)
    ]
    few = random.sample(asked, min(MAX_ASKED, len(asked)))
    await asyncio.gather(*(_ask(swarm, router, record, timeout_s) for record in few))


async def _ask(
    swarm: "Swarm", router: ClientRouter, record: "ServerRecord", timeout_s: float
) -> None:
    try:
        said = checked_status(await swarm.ask_status(record, timeout_s))
    except PeerError:
        return
    sessions = said.get("sessions", record.sessions)
    wait_ms = said.get("queue_wait_ms", record.queue_wait_ms)
    free = said.get("cache_tokens_free", record.cache_tokens_free)
    if sessions >= 0 and wait_ms >= 0 and free >= 0:
        router.heard(record.peer, sessions, wait_ms, free)
