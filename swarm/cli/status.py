"""What `swarm-client status` does once its options are read."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from swarm.cli.logs import log_to_stderr
from swarm.cli.terminal import table_console
from swarm.client.membership import Membership
from swarm.client.settings import ClientSettings
from swarm.client.status import best_status
from swarm.errors import CheckpointError, PeerTimeoutError, UsageError
from swarm.printable import listed
from swarm.routing.view import Numerics

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm
    from swarm.dht.directory import ModelEntry

ANSWER_S = 60.0
"""Longest time for everything but the servers' own answers, which get `--timeout`."""
MAX_TIMEOUT_S = 3600.0


def show_status(peers: Sequence[str], model: str | None, timeout_s: float, as_json: bool) -> None:
    """Print the table, or one JSON object. UsageError for no time that can be waited."""
    if not timeout_s <= MAX_TIMEOUT_S:
        raise UsageError(f"--timeout {timeout_s:g}: give seconds, {MAX_TIMEOUT_S:g} at most")
    log_to_stderr()
    membership = Membership(peers, ClientSettings())
    try:
        runtime, swarm = membership.get()
        found = runtime.run(_find(swarm, model, timeout_s), ANSWER_S + timeout_s)
    except PeerTimeoutError:
        raise
    except TimeoutError:
        raise PeerTimeoutError(
            f"the swarm did not tell its status within {ANSWER_S + timeout_s:g} s; try again, by "
            "another member (--peers)"
        ) from None
    finally:
        membership.close()
    if as_json:
        typer.echo(json.dumps(found))
    else:
        _print_table(found)


async def _find(swarm: "Swarm", model: str | None, timeout_s: float) -> dict[str, Any]:
    models = await swarm.models()
    return await best_status(swarm, await _of_name(models, model), timeout_s)


async def _of_name(models: "Sequence[ModelEntry]", model: str | None) -> "Sequence[ModelEntry]":
    """The models that MODEL may mean: all without it. CheckpointError if none of them is served."""
    entries = [one for one in models if model is None or one.model == model]
    if entries or model is None or not models:
        return entries
    served = listed([one.model for one in models])
    identity = await asyncio.to_thread(_identity, model)
    for one in models:
        if one.checkpoint == identity:
            return [one]
    raise CheckpointError(f"this swarm does not serve {model}; it serves {served}")


def _identity(model: str) -> str | None:
    """Of a folder, a file or a hub name; None when it is none of these."""
    if not Path(model).expanduser().exists() and "/" not in model:
        return None
    from swarm.models.checkpoint import open_checkpoint

    return open_checkpoint(model).identity


def _print_table(found: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = table_console()
    if found["model"] is None:
        console.print("no server is online in this swarm")
        return
    missing = ", ".join(found["missing"])
    blocks = f"{found['blocks_total']} blocks, " + (
        f"missing: {missing}" if missing else "all served"
    )
    # As Text: what strangers call themselves is no markup.
    table = Table(title=Text(f"{found['model']}: {blocks}"), title_justify="left")
    for heading in ("blocks", "state", "peer", "name", "computes in"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms/block", "prefill/s", "cache free", "sessions", "wait ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for server in found["servers"]:
        table.add_row(
            server["blocks"],
            server["state"] + (f", soon {server['moving_to']}" if server["moving_to"] else ""),
            f"..{server['peer'][-6:]}",
            Text(server["name"]),
            Text(_numerics(server)),
            f"{server['decode_ms_per_block']:.2f}",
            f"{server['prefill_tokens_per_s']:.0f}",
            f"{server['cache_tokens_free']}/{server['cache_tokens_total']}",
            str(server["sessions"]),
            f"{server['queue_wait_ms']:.1f}",
        )
    console.print(table)


def _numerics(server: Mapping[str, Any]) -> str:
    """What must be alike in a chain."""
    return str(Numerics(server["dtype"], server["quantization"], server["device"]))
