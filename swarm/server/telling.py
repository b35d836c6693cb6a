"""The events of a server in words, and their fields."""

from collections.abc import Mapping, Sequence
from typing import Any

from swarm.routing.view import ServerState
from swarm.server.backup_memory import backup_bytes
from swarm.server.config import Listening, ServerConfig
from swarm.server.events import ServerEvent
from swarm.server.hosted import Hosted, Plan
from swarm.server.memory import Budget, cache_tokens
from swarm.server.reachability import forwarding_advice, reach_of
from swarm.server.sizes import in_words, mbit
from swarm.spans import Span


def counted(count: int, what: str) -> str:
    """`1 session`, `2 sessions`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def sibling_event(others: int, path: str) -> ServerEvent:
    """`others` servers run here with the usual keys, so this one has a key of its own."""
    text = f"{counted(others, 'other server')} of yours here; this one uses the identity {path}"
    return ServerEvent("notice", text, {"identity": path})


def opening_event(model: str | None) -> ServerEvent:
    return ServerEvent("loading", f"opening {model or 'the embedded model'}", {"stage": "opening"})


def listening_event(addresses: list[str], peer: str, join_command: str) -> ServerEvent:
    """`addresses`: the best one first."""
    reach = reach_of(addresses[0]).in_words
    return ServerEvent(
        "listening",
        f"listening on {addresses[0]} (for {reach}); to join: {join_command}",
        {"address": addresses[0], "addresses": addresses, "peer": peer},
    )


def forwarding_events(config: Listening, listening: Sequence[str]) -> list[ServerEvent]:
    """At most one: advice for who announces a forwarded port."""
    advice = forwarding_advice(config.listen, config.announce, listening)
    return [] if advice is None else [ServerEvent("notice", advice)]


def memory_event(plan: Plan, span: Span, asked: ServerConfig, budget: Budget) -> ServerEvent:
    """How the blocks and the cache were decided; the cache's size is final when they are loaded."""
    needs, free, lent = plan.needs, budget.free, budget.lent_bytes
    weights = needs.weights(span)
    tokens, _ = cache_tokens(asked.cache_tokens, needs, span, budget.without(weights))
    cache = needs.cache(span, tokens)
    backups = backup_bytes(asked.backup_memory, cache)
    left = max(0, free.size_bytes - weights - cache - backups)
    why = f"of {len(needs.block_bytes)} as many as fit"
    if asked.blocks is not None:
        why = "as asked"
    elif len(span) == len(needs.block_bytes):
        why = "the whole model"
    text = (
        f"memory: {in_words(free.size_bytes)} are free {free.where}"
        + (f", {in_words(lent)} are lent (--max-memory)" if lent is not None else "")
        + f"; a block takes {in_words(max(needs.block_bytes))}, blocks {span} ({why})"
        f" {in_words(weights)}, the cache {in_words(cache)} for {tokens:,} tokens, copies for"
        f" repairs up to {in_words(backups)}; {in_words(left)} are left for the system"
    )
    fields = {
        "free_bytes": free.size_bytes,
        "free_where": free.where,
        "lent_bytes": lent,
        "block_bytes": max(needs.block_bytes),
        "weights_bytes": weights,
        "cache_bytes": cache,
        "cache_tokens": tokens,
        "backup_bytes": backups,
        "left_bytes": left,
    }
    return ServerEvent("notice", text, fields)


def commit_event(plan: Plan) -> ServerEvent:
    checkpoint = plan.checkpoint
    text = f"{checkpoint.name} is taken from the hub at commit {checkpoint.commit}"
    return ServerEvent("notice", text, {"model": checkpoint.name, "commit": checkpoint.commit})


def fetching_event(plan: Plan, span: Span, done: int, total: int) -> ServerEvent:
    """`done` of `total` bytes have come from the hub."""
    return _loading_event(plan, span, done, total, "fetching", f" of {in_words(total)}")


def progress_event(plan: Plan, span: Span, done: int, total: int) -> ServerEvent:
    """`done` of `total` tensors are loaded."""
    return _loading_event(plan, span, done, total, "loading")


def _loading_event(
    plan: Plan, span: Span, done: int, total: int, stage: str, of_what: str = ""
) -> ServerEvent:
    percent = 100 * done // max(1, total)
    return ServerEvent(
        "loading",
        f"{stage} blocks {span} of {plan.checkpoint.name}: {percent} %{of_what}",
        {"stage": stage, "blocks": str(span), "done": done, "total": total},
    )


def online_event(plan: Plan, span: Span, hosted: Hosted, address: str, peer: str) -> ServerEvent:
    speed, checkpoint, tokens = hosted.speed, plan.checkpoint, hosted.cache.total_tokens
    error, numerics = hosted.quantization_error, str(plan.numerics)
    if error is not None:
        numerics += f", each block {100 * error:.2g} % from float32"
    return ServerEvent(
        "online",
        f"online with blocks {span} of {checkpoint.num_blocks} of {checkpoint.name}"
        f" ({numerics}): {speed.decode_ms_per_block:.2f} ms a token and block,"
        f" {speed.prefill_tokens_per_s:,.0f} prompt tokens/s, cache for {tokens:,} tokens"
        f" ({hosted.cache_reason})",
        {
            "blocks": str(span),
            "address": address,
            "peer": peer,
            "model": checkpoint.name,
            "blocks_total": checkpoint.num_blocks,
            "dtype": plan.numerics.dtype,
            "quantization": plan.quantization,
            "quantization_error": error,
            "commit": checkpoint.commit,
            "decode_ms_per_block": round(speed.decode_ms_per_block, 4),
            "prefill_tokens_per_s": round(speed.prefill_tokens_per_s, 1),
            "cache_tokens": tokens,
            "cache_reason": hosted.cache_reason,
            "weights_bytes": plan.needs.weights(span),
        },
    )


def moving_event(old: Span, new: Span, reason: str) -> ServerEvent:
    text = f"moving to blocks {new} because {reason}; until now it had {old}"
    return ServerEvent("moving", text, {"blocks": str(new), "from": str(old), "reason": reason})


def stays_event(old: Span, new: Span, error: Exception) -> ServerEvent:
    text = f"staying with blocks {old}: blocks {new} cannot be served here ({error})"
    return ServerEvent("notice", text, {"blocks": str(old), "from": str(new)})


def away_status(peer: str, name: str, span: Span, state: ServerState) -> dict[str, Any]:
    """Of a server that loads `span`: nothing is served meanwhile."""
    nothing = dict.fromkeys(("sessions", "cache_tokens_free", "cache_tokens_total"), 0)
    return {"peer": peer, "name": name, "blocks": str(span), "state": str(state), **nothing}


def draining_event(sessions: int, timeout_s: float) -> ServerEvent:
    text = f"draining: {counted(sessions, 'session')} may go on for {timeout_s:g} s"
    return ServerEvent("draining", text, {"sessions": sessions})


def stats_event(report: Mapping[str, Any]) -> ServerEvent:
    """`report`: of `Reporter.report`; the text is its short form."""
    return ServerEvent(
        "stats",
        f"{counted(report['sessions'], 'session')}; decode"
        f" {report['recent_decode_tokens_per_s']:,.1f} tokens/s, prefill"
        f" {report['recent_prefill_tokens_per_s']:,.0f}; served"
        f" {report['decode_tokens'] + report['prefill_tokens']:,} tokens;"
        f" {report['cache_tokens_free']:,} of {report['cache_tokens_total']:,} cached tokens free;"
        f" {counted(len(report['peers']), 'peer')}, up {mbit(report['up_bytes_per_s'])}, down"
        f" {mbit(report['down_bytes_per_s'])} Mbit/s",
        dict(report),
    )
