"""What `swarm-client status` shows: the directory's records and what the servers say themselves."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swarm.client.swarm import Swarm
from swarm.errors import PeerError
from swarm.spans import Span, missing_spans

if TYPE_CHECKING:
    from swarm.dht.directory import ModelEntry
    from swarm.dht.records import ServerRecord

UNREACHABLE = "unreachable"
"""State of a server that is in the directory and does not answer."""
NOT_ASKED = "not asked"
"""State of a server of a swarm that has too many to ask them all."""
MAX_ASKED = 256
"""Servers at once; anybody may announce any number, and each is a connection."""
MAX_COMPARED = 16
"""Models that are asked for, those first that the index gives most servers."""
_LIVE_FIELDS = {
    "state": str,
    "decode_ms_per_block": float,
    "prefill_tokens_per_s": float,
    "cache_tokens_free": int,
    "cache_tokens_total": int,
    "sessions": int,
    "queue_wait_ms": float,
}
"""What a server's own answer replaces, and the type that it must have."""
_ONLY_LIVE_FIELDS = {
    "uptime_s": float,
    "sessions_in_line": int,
    "backup_bytes": int,
    "backup_evictions": int,
    "decode_tokens": int,
    "prefill_tokens": int,
    "decode_queue_ms": float,
    "prefill_queue_ms": float,
    "decode_share": float,
    "recent_decode_tokens_per_s": float,
    "recent_prefill_tokens_per_s": float,
    "streams": int,
    "tasks": int,
    "open_files": int,
}
"""Likewise; None where a server does not say."""


MOST = 1e15
"""No number of a server is larger; a stranger may write down any."""


async def swarm_status(
    swarm: Swarm, entry: "ModelEntry | None", timeout_s: float, most: int = MAX_ASKED
) -> dict[str, Any]:
    """The state of one model, as `status --json` prints it.

    Each server is asked, for at most `timeout_s`; one that does not answer is shown as
    `unreachable`, its blocks count as missing, and what only it knows is None. Of more than `most`
    servers so many are asked, drawn by lot, and the others are shown as `not asked`, likewise.
    `entry` None: nothing is served.
    """
    if entry is None:
        return {"model": None, "blocks_total": 0, "missing": [], "servers": []}
    records = await swarm.servers(entry.checkpoint, 0.0)
    asked = set(random.sample(range(len(records)), min(most, len(records))))
    rows = await asyncio.gather(
        *(
            _row(swarm, record, timeout_s if index in asked else None)
            for index, record in enumerate(records)
        )
    )
    rows.sort(key=lambda row: (Span.parse(row["blocks"]), row["peer"]))
    online = [Span.parse(row["blocks"]) for row in rows if row["state"] == "online"]
    return {
        "model": entry.model,
        "blocks_total": entry.num_blocks,
        "missing": [str(span) for span in missing_spans(online, entry.num_blocks)],
        "servers": list(rows),
    }


async def best_status(
    swarm: Swarm, entries: "Sequence[ModelEntry]", timeout_s: float
) -> dict[str, Any]:
    """The status of the model with most servers online; the index may still name dead ones."""
    if not entries:
        return await swarm_status(swarm, None, timeout_s)
    if len(entries) == 1:
        return await swarm_status(swarm, entries[0], timeout_s)
    compared = entries[:MAX_COMPARED]
    found = await asyncio.gather(
        *(swarm_status(swarm, entry, timeout_s, MAX_ASKED // len(compared)) for entry in compared)
    )
    best = max(range(len(found)), key=lambda index: _servers_online(found[index]))
    if any(server["state"] == NOT_ASKED for server in found[best]["servers"]):
        return await swarm_status(swarm, compared[best], timeout_s)
    return found[best]


def _servers_online(status: Mapping[str, Any]) -> int:
    return sum(server["state"] == "online" for server in status["servers"])


async def _row(swarm: Swarm, record: "ServerRecord", timeout_s: float | None) -> dict[str, Any]:
    """`timeout_s` None: it is not asked."""
    row: dict[str, Any] = {
        "peer": record.peer,
        "name": record.public_name,
        "max_upload_mbit": record.max_upload_mbit or None,
        "blocks": str(record.span),
        "state": str(record.state),
        "moving_to": None if record.moving_to is None else str(record.moving_to),
        "dtype": record.numerics.dtype,
        "quantization": record.numerics.quantization,
        "device": record.numerics.kernel_class,
        "version": record.version,
        "protocol": record.protocol,
        "decode_ms_per_block": record.decode_ms_per_block,
        "prefill_tokens_per_s": record.prefill_tokens_per_s,
        "cache_tokens_free": record.cache_tokens_free,
        "cache_tokens_total": record.cache_tokens_total,
        "sessions": record.sessions,
        "queue_wait_ms": record.queue_wait_ms,
        **dict.fromkeys(_ONLY_LIVE_FIELDS),
    }
    if timeout_s is None:
        row["state"] = NOT_ASKED
        return row
    try:
        live = await swarm.ask_status(record, timeout_s)
    except PeerError:
        row["state"] = UNREACHABLE
    else:
        row.update(checked_status(live))
    return row


def checked_status(live: Mapping[str, Any]) -> dict[str, Any]:
    """Of a stranger's answer, what is known and has the right type."""
    checked: dict[str, Any] = {}
    for name, kind in (_LIVE_FIELDS | _ONLY_LIVE_FIELDS).items():
        value = live.get(name)
        if isinstance(value, int | float) and not 0 <= value <= MOST:
            continue
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            continue
        if isinstance(value, str) and not value.isprintable():
            continue
        checked[name] = value[:32] if isinstance(value, str) else value
    return checked
