"""Records for the DHT tests."""

from typing import Any

from swarm.dht.records import ServerRecord
from swarm.routing.view import Numerics, ServerState
from swarm.spans import PeerId, Span
from swarm.wire.frames import PROTOCOL_VERSION

CHECKPOINT = "c0ffee" * 10


def record(peer: PeerId, start: int = 0, end: int = 10, **changes: Any) -> ServerRecord:
    fields: dict[str, Any] = {
        "peer": peer,
        "span": Span(start, end),
        "state": ServerState.ONLINE,
        "checkpoint": CHECKPOINT,
        "model": "SmolLM2-135M-Instruct",
        "num_blocks": 30,
        "numerics": Numerics("float32"),
        "decode_ms_per_block": 0.75,
        "prefill_tokens_per_s": 1500.0,
        "cache_tokens_free": 4000,
        "cache_tokens_total": 8192,
        "queue_wait_ms": 1.5,
        "sessions": 3,
        "version": "0.1.0",
        "protocol": PROTOCOL_VERSION,
    }
    return ServerRecord(**{**fields, **changes})
