"""What a busy server reports of itself."""

from typing import Any

from swarm.server.events import ServerEvent


def peer(number: int, **changes: Any) -> dict[str, Any]:
    values = {
        "peer": f"12D3KooWpeer{number:06}",
        "kind": "client",
        "name": "",
        "up_bytes_per_s": 125_000,
        "down_bytes_per_s": 250_000,
        "sent": 5_000_000,
        "received": 2_000_000_000,
        "rtt_ms": 12.34,
        "rate_bytes_per_s": 2_500_000,
        "window_bytes": 64_000,
    }
    return {**values, **changes}


def report(**changes: Any) -> dict[str, Any]:
    values = {
        "name": "attic",
        "model": "Big-70B",
        "blocks": "10:30",
        "blocks_total": 80,
        "dtype": "bfloat16",
        "quantization": "int8",
        "device": "cuda:0",
        "state": "online",
        "uptime_s": 4000.0,
        "sessions": 3,
        "sessions_in_line": 1,
        "recent_decode_tokens_per_s": 41.25,
        "recent_prefill_tokens_per_s": 1310.0,
        "decode_tokens": 123_456,
        "prefill_tokens": 7_890,
        "queue_wait_ms": 2.5,
        "decode_queue_ms": 1.5,
        "prefill_queue_ms": 40.0,
        "decode_share": 0.75,
        "waiting_jobs": 2,
        "passes": 99,
        "failed_jobs": 0,
        "backup_bytes": 12_000_000,
        "backup_evictions": 1,
        "accepted_streams": 12,
        "busy_share": 0.5,
        "busy_s": 61.0,
        "cache_tokens_total": 65536,
        "cache_tokens_free": 16384,
        "cache_token_bytes": 10_000,
        "max_upload_mbit": 20.0,
        "up_bytes_per_s": 125_000,
        "down_bytes_per_s": 250_000,
        "peers": [peer(1)],
    }
    return {**values, **changes}


def stats() -> ServerEvent:
    return ServerEvent("stats", "3 sessions; decode 41.2 tokens/s", report())
