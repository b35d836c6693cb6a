"""The table of what a server does now, from the fields of a `stats` event."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from swarm.routing.view import Numerics
from swarm.server.sizes import in_words, mbit

MAX_PEERS = 10
"""Those that have had most traffic; of the others only the number is shown."""


def report_table(report: Mapping[str, Any]) -> Group:
    """The server itself, and below it its peers."""
    parts: list[Table | Text] = [Text(_title(report), "bold"), _own_table(report)]
    if report["peers"]:
        parts.append(_peer_table(report["peers"]))
    return Group(*parts)


def _own_table(report: Mapping[str, Any]) -> Table:
    table = Table()
    for heading in ("", "now", "in all"):
        table.add_column(heading, no_wrap=True)
    total, free = report["cache_tokens_total"], report["cache_tokens_free"]
    taken = total - free
    rows = [
        (
            "sessions",
            f"{report['sessions']} open, {report['sessions_in_line']} in line",
            "",
        ),
        (
            "decode",
            f"{report['recent_decode_tokens_per_s']:,.1f} tokens/s",
            f"{report['decode_tokens']:,} tokens",
        ),
        (
            "prefill",
            f"{report['recent_prefill_tokens_per_s']:,.1f} tokens/s",
            f"{report['prefill_tokens']:,} tokens",
        ),
        (
            "wait for a pass",
            f"{report['queue_wait_ms']:,.1f} ms, {report['waiting_jobs']} wait",
            f"{report['passes']:,} passes, {report['failed_jobs']:,} steps failed",
        ),
        (
            "of it decode, prefill",
            f"{report['decode_queue_ms']:,.1f} ms, {report['prefill_queue_ms']:,.1f} ms",
            "",
        ),
        (
            "computing",
            f"{100 * report['busy_share']:.0f} % of the time",
            f"{duration(report['busy_s'])}, {100 * report['decode_share']:.0f} % of it decode",
        ),
        (
            "cache",
            f"{taken:,} of {total:,} tokens taken ({100 * taken / max(1, total):.0f} %)",
            f"{in_words(taken * report['cache_token_bytes'])} of"
            f" {in_words(total * report['cache_token_bytes'])}",
        ),
        (
            "copies for repairs",
            in_words(report["backup_bytes"]),
            f"{report['backup_evictions']:,} given up",
        ),
        ("sent", _up(report), _with_peers(report, "sent", "to")),
        (
            "received",
            f"{mbit(report['down_bytes_per_s'])} Mbit/s",
            _with_peers(report, "received", "from"),
        ),
        ("reached by others", _reached(report), ""),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _title(report: Mapping[str, Any]) -> str:
    name = f"{report['name']}: " if report["name"] else ""
    numerics = Numerics(report["dtype"], report["quantization"], report["device"])
    return (
        f"{name}blocks {report['blocks']} of {report['blocks_total']} of {report['model']},"
        f" {numerics}, {report['state']} for {duration(report['uptime_s'])}"
    )


def _up(report: Mapping[str, Any]) -> str:
    limit = report["max_upload_mbit"]
    allowed = "" if limit is None else f" of {limit:g}"
    return f"{mbit(report['up_bytes_per_s'])}{allowed} Mbit/s"


def _with_peers(report: Mapping[str, Any], what: str, way: str) -> str:
    """A link's counters go when it goes, so there is no total of all peers that ever were."""
    peers = report["peers"]
    size = in_words(sum(peer[what] for peer in peers))
    return f"{size} {way} the peers below" if peers else "no peers now"


def _reached(report: Mapping[str, Any]) -> str:
    count = report["accepted_streams"]
    return f"yes, links that came in: {count:,}" if count else "not yet"


def _peer_table(peers: Sequence[Mapping[str, Any]]) -> Table:
    more = len(peers) - MAX_PEERS
    table = Table(caption=f"and {more} more" if more > 0 else None, caption_justify="left")
    for heading in ("peer", ""):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "up Mbit/s",
        "down Mbit/s",
        "sent",
        "received",
        "round trip",
        "rate Mbit/s",
        "window",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for peer in peers[:MAX_PEERS]:
        rtt_ms, rate = peer["rtt_ms"], peer["rate_bytes_per_s"]
        table.add_row(
            f"..{peer['peer'][-6:]}",
            Text(f"{peer['kind']} {peer['name']}".rstrip()),
            mbit(peer["up_bytes_per_s"]),
            mbit(peer["down_bytes_per_s"]),
            in_words(peer["sent"]),
            in_words(peer["received"]),
            "" if rtt_ms is None else f"{rtt_ms:.1f} ms",
            "" if rate is None else mbit(rate),
            in_words(peer["window_bytes"]),
        )
    return table


def duration(seconds: float) -> str:
    """`42 s`, `7 min 5 s`, `3 h 12 min`, `2 d 4 h`."""
    whole = int(seconds)
    for size, unit, part, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"
