"""What a running server does now: every figure that it tells, in one place.

Counters belong to who counts (engine, links, admission); here they are read, and nowhere twice.
"""

import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from swarm.dht.records import MAX_MS
from swarm.routing.view import ServerState
from swarm.server.config import ServerConfig
from swarm.server.engine import Engine
from swarm.server.hosted import Hosted, Plan
from swarm.server.neighbourhood import Neighbourhood
from swarm.server.rates import Rates
from swarm.server.service import Service
from swarm.server.status import LoopLag, process_fields, program_version
from swarm.spans import PeerId, Span
from swarm.wire.link_stats import LinkStats
from swarm.wire.links import Links


@dataclass(frozen=True)
class OnlineParts:
    """The parts of a server that is online."""

    peer: PeerId
    config: ServerConfig
    plan: Plan
    span: Span
    hosted: Hosted
    service: Service
    engine: Engine
    links: Links
    neighbourhood: Neighbourhood


class Reporter:
    """Reads the parts of a server; `sample`, called every `SAMPLE_S`, makes rates of counters."""

    def __init__(self, parts: OnlineParts, lag: LoopLag) -> None:
        self._parts = parts
        self._lag = lag
        self._rates = Rates()
        self._began = time.monotonic()
        self.sample()

    def measured(self) -> dict[str, Any]:
        """Speed and load: the part of the status that is also in the directory's record."""
        engine, service = self._parts.engine.stats(), self._parts.service
        return {
            "decode_ms_per_block": round(1e3 * engine.decode_s / len(self._parts.span), 4),
            "prefill_tokens_per_s": round(engine.prefill_tokens_per_s, 1),
            "cache_tokens_free": service.admission.free_tokens,
            "cache_tokens_total": service.admission.capacity_tokens,
            "sessions": service.session_count,
            # A process that was stopped for hours has waits that no record may tell.
            "queue_wait_ms": round(min(engine.recent_queue_ms, MAX_MS), 3),
        }

    def status(self, state: ServerState) -> dict[str, Any]:
        """For whoever asks: nothing of it says who our peers are."""
        parts, rates = self._parts, self._rates
        engine = parts.engine.stats()
        return {
            "peer": parts.peer,
            "name": parts.config.name,
            "model": parts.plan.checkpoint.name,
            "blocks": str(parts.span),
            "blocks_total": parts.plan.checkpoint.num_blocks,
            "dtype": parts.plan.numerics.dtype,
            "quantization": parts.plan.quantization,
            "device": str(parts.plan.device),
            "state": str(state),
            "uptime_s": round(time.monotonic() - self._began, 1),
            "sessions_in_line": parts.service.waiting_count,
            "backup_bytes": parts.service.backups.total_bytes,
            "backup_evictions": parts.service.backups.evictions,
            "version": program_version(),
            **self.measured(),
            "decode_tokens": engine.decode_tokens,
            "prefill_tokens": engine.prefill_tokens,
            "decode_queue_ms": round(engine.decode_queue_ms, 3),
            "prefill_queue_ms": round(engine.prefill_queue_ms, 3),
            "decode_share": round(engine.decode_share, 4),
            "recent_decode_tokens_per_s": round(rates.per_s("decode_tokens"), 2),
            "recent_prefill_tokens_per_s": round(rates.per_s("prefill_tokens"), 2),
            "max_upload_mbit": parts.config.max_upload_mbit,
            **process_fields(len(parts.links.peers()), self._lag),
        }

    def report(self, state: ServerState) -> dict[str, Any]:
        """For the server's operator: the status, all counters since the start, and the peers."""
        parts, rates = self._parts, self._rates
        engine = parts.engine.stats()
        peers = sorted(self._peers(), key=lambda one: (-one["sent"] - one["received"], one["peer"]))
        return {
            **self.status(state),
            "passes": engine.passes,
            "jobs": engine.jobs,
            "failed_jobs": engine.failed_jobs,
            "busy_s": round(engine.busy_s, 6),
            "queue_s": round(engine.queue_s, 6),
            "busy_share": round(min(1.0, rates.per_s("busy_s")), 3),
            "waiting_jobs": engine.waiting_jobs,
            "waiting_tokens": engine.waiting_tokens,
            "accepted_streams": parts.links.accepted_streams,
            "bytes_read": parts.plan.checkpoint.bytes_read,
            "cache_token_bytes": parts.hosted.blocks.bytes_per_token,
            "up_bytes_per_s": sum(one["up_bytes_per_s"] for one in peers),
            "down_bytes_per_s": sum(one["down_bytes_per_s"] for one in peers),
            "peers": peers,
        }

    def sample(self) -> None:
        """Reads the counters."""
        engine = self._parts.engine.stats()
        counters: dict[Hashable, float] = {
            "decode_tokens": engine.decode_tokens,
            "prefill_tokens": engine.prefill_tokens,
            "busy_s": engine.busy_s,
        }
        for peer, link in self._linked():
            counters[peer, "sent"] = link.bytes_sent
            counters[peer, "received"] = link.bytes_received
        self._rates.sample(time.monotonic(), counters)

    def _linked(self) -> Iterator[tuple[PeerId, LinkStats]]:
        """Each peer whose link is up, and how its link is."""
        links = self._parts.links
        for peer in links.peers():
            link = links.stats(peer)
            if link is not None:
                yield peer, link

    def round_trips_s(self) -> dict[PeerId, float]:
        """Of the links that are up, to servers."""
        links = self._parts.links
        return {
            peer: link.rtt_s
            for peer, link in self._linked()
            if link.rtt_s is not None and not links.is_client(peer)
        }

    def _peers(self) -> list[dict[str, Any]]:
        names = self._parts.neighbourhood.names
        return [
            {
                "peer": peer,
                "kind": "client" if self._parts.links.is_client(peer) else "server",
                "name": names.get(peer, ""),
                "up_bytes_per_s": round(self._rates.per_s((peer, "sent"))),
                "down_bytes_per_s": round(self._rates.per_s((peer, "received"))),
                "sent": link.bytes_sent,
                "received": link.bytes_received,
                "rtt_ms": _ms(link.rtt_s),
                "min_rtt_ms": _ms(link.min_rtt_s),
                "rate_bytes_per_s": link.rate_bytes_per_s and round(link.rate_bytes_per_s),
                "window_bytes": link.window_bytes,
                "fragment_bytes": link.fragment_bytes,
                "in_flight_bytes": link.in_flight_bytes,
                "waiting_bytes": link.outstanding_bytes,
                "arriving_bytes": link.unfinished_bytes,
                "decode_active": link.decode_active,
                "streams": link.streams,
                "lanes": link.lanes,
            }
            for peer, link in self._linked()
        ]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 2)
