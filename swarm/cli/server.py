"""`swarm-server`: host blocks of a model for everybody."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarm.cli.arguments import (
    Announce,
    Listen,
    Model,
    Peers,
    Version,
    repeat_address_options,
    split_addresses,
)
from swarm.cli.errors import run, run_program
from swarm.cli.events import EventPrinter, LastingPrinter, Printer
from swarm.cli.importing import importing
from swarm.cli.logs import log_to_stderr
from swarm.cli.serving import Serving, serve
from swarm.errors import UsageError

if TYPE_CHECKING:
    from swarm.server.config import ServerConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_MODEL, _MEMORY, _LIMITS = "What is hosted", "Memory and computing", "What users may take"
_NETWORK, _REPORTS = "Network", "What it tells"
_EXIT_CODES = (
    "Exit codes: 0 after Ctrl-C or SIGTERM, 1 when something failed, 2 when an option is wrong."
    " SIGUSR1 prints the table at once. More: docs/volunteers.md, docs/reference.md"
)
WATCH_S = 1.0
"""How often the live table is drawn anew."""
WATCH_LINES_S = 60.0
"""How often `--watch` writes a line where it cannot draw."""


@app.command(epilog=_EXIT_CODES)
def server(
    model: Model = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Blocks to host, such as 0:20 (end exclusive). Default: as many as fit in memory,"
            " where the swarm needs them most.",
            metavar="START:END",
            show_default=False,
            rich_help_panel=_MODEL,
        ),
    ] = None,
    peers: Peers = None,
    listen: Listen = None,
    announce: Announce = None,
    identity: Annotated[
        Path | None,
        typer.Option(
            help="Key file of this server's peer id; made if absent. Default: one in your data"
            " folder, a further one for each further server that runs here.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32, bfloat16 or float16. auto: float32 on a CPU.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto",
    quantization: Annotated[
        str,
        typer.Option(
            help="none, int8 (torchao) or nf4 (bitsandbytes): weights in fewer bits, which changes"
            " the results. Announced; needs the extra `quantization`.",
            rich_help_panel=_MODEL,
        ),
    ] = "none",
    revision: Annotated[
        str | None,
        typer.Option(
            help="Branch, tag or commit of a Hugging Face name.",
            show_default=False,
            rich_help_panel=_MODEL,
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for blocks and cache together, such as 8GiB or 500MB. Default: as much as"
            " is free, containers' limits counted.",
            metavar="SIZE",
            show_default=False,
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of K/V cache for all sessions together: 64 or more, rounded up to whole"
            " pages of 64. Default: a share of the free memory.",
            show_default=False,
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:1.", rich_help_panel=_MEMORY)
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads to compute with. Default: OMP_NUM_THREADS, else one per core.",
            show_default=False,
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    max_upload_mbit: Annotated[
        float | None,
        typer.Option(
            help="Mbit/s that may be sent to all peers together, 0.1 or more. Default: no limit.",
            metavar="MBIT",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    known_clients: Annotated[
        list[str] | None,
        typer.Option(
            help="A peer id, or a network such as 192.168.1.0/24, that goes before strangers: all"
            " others together get 20 to 50 % while it wants service. May be given several times.",
            metavar="WHO",
            show_default=False,
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    sessions_per_client: Annotated[
        int,
        typer.Option(
            help="Sessions that one client may have, open or in line.", rich_help_panel=_LIMITS
        ),
    ] = 256,
    tokens_per_client: Annotated[
        int | None,
        typer.Option(
            help="Tokens of K/V cache that one client may have. Default: as many as there are.",
            show_default=False,
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    drain_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds that running sessions get to move or end when the server stops.",
            rich_help_panel=_LIMITS,
        ),
    ] = 30.0,
    backup_memory: Annotated[
        int | None,
        typer.Option(
            help="MiB for copies of what was sent on to the next servers, from which lost ones are"
            " replaced; 0: none. Default: an eighth of the cache, at least 64.",
            show_default=False,
            rich_help_panel=_MEMORY,
        ),
    ] = None,
    move_check: Annotated[
        float,
        typer.Option(
            help="Without --blocks: about how often, in seconds, the server looks whether other"
            " blocks need it more, and moves there if they do. 0: it never moves.",
            metavar="SECONDS",
            rich_help_panel=_MODEL,
        ),
    ] = 60.0,
    name: Annotated[
        str,
        typer.Option(
            help="A name that others see in `swarm-client status`, at most 60 bytes.",
            show_default=False,
            rich_help_panel=_REPORTS,
        ),
    ] = "",
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="A live table of what the server does; plain lines where there is no terminal.",
            rich_help_panel=_REPORTS,
        ),
    ] = False,
    stats: Annotated[
        float | None,
        typer.Option(
            help="Seconds between two reports of load and speed. Default: one when the server is"
            " online, then at SIGUSR1.",
            metavar="SECONDS",
            show_default=False,
            rich_help_panel=_REPORTS,
        ),
    ] = None,
    json_logs: Annotated[
        bool,
        typer.Option(
            "--json-logs",
            help="One JSON object a line on standard output.",
            rich_help_panel=_REPORTS,
        ),
    ] = False,
    version: Version = False,
) -> None:
    """Host blocks of a language model in a swarm, until Ctrl-C.

    Without --peers it begins a new swarm and prints the address to join with.
    """
    printer = LastingPrinter(_printer(json_logs, watch))

    def command() -> None:
        if watch and json_logs:
            raise UsageError("--watch is for people and --json-logs for programs; choose one")
        from swarm.server.config import ServerConfig, make_config

        values: dict[str, object] = {
            "model": model,
            "blocks": blocks,
            "peers": split_addresses(peers or ()),
            "announce": split_addresses(announce or ()),
            "identity": identity,
            "dtype": dtype,
            "quantization": quantization,
            "device": device,
            "max_memory": max_memory,
            "max_upload_mbit": max_upload_mbit,
            "cache_tokens": cache_tokens,
            "known_clients": tuple(known_clients or ()),
            "sessions_per_client": sessions_per_client,
            "tokens_per_client": tokens_per_client,
            "threads": threads,
            "revision": revision,
            "name": name,
            "stats_s": _report_interval_s(stats, watch),
            "drain_timeout_s": drain_timeout,
            "backup_memory": backup_memory,
            "move_check_s": move_check,
        }
        if listen:
            values["listen"] = split_addresses(listen)
        config = make_config(ServerConfig, **values)
        try:
            _serve(config, printer, tell_first=not (json_logs or watch))
        finally:
            printer.close()

    run(command, printer.error)


def _printer(json_logs: bool, watch: bool) -> Printer:
    if not watch or json_logs:
        return EventPrinter(json_logs)
    if not sys.stdout.isatty():
        return EventPrinter(False, tables=False)
    from swarm.cli.watching import WatchScreen

    return WatchScreen()


def _report_interval_s(asked: float | None, watch: bool) -> float | None:
    if asked is not None or not watch:
        return asked
    return WATCH_S if sys.stdout.isatty() else WATCH_LINES_S


def _serve(config: "ServerConfig", printer: Printer, *, tell_first: bool) -> None:
    from swarm.server.threads import limit_threads, pick_threads

    limit_threads(pick_threads(config.threads))

    def make() -> Serving:
        with importing(quantized=config.quantization != "none"):
            from swarm.server.server import Server

        return Server(config, on_event=printer)

    serve(make, tell_first=tell_first)


def main() -> None:
    """Entry point of the program."""
    log_to_stderr()
    run_program(app, "swarm-server", repeat_address_options(sys.argv[1:]))
