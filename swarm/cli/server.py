"""`swarm-server`: host blocks of a model for everybody."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarm.cli.arguments import Announce, Listen, Peers, repeat_address_options, split_addresses
from swarm.cli.errors import run, run_program
from swarm.cli.events import EventPrinter
from swarm.cli.serving import Serving, serve

if TYPE_CHECKING:
    from swarm.server.config import ServerConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def server(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A folder, a GGUF file or a Hugging Face name. Default: SmolLM2-135M-Instruct.",
            show_default=False,
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Blocks to host, such as 0:20 (end exclusive). Default: all that fit in memory,"
            " else the least covered run.",
            metavar="START:END",
            show_default=False,
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
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="auto, float32, bfloat16 or float16. auto: float32 on a CPU."),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of K/V cache for all sessions together: 64 or more, rounded up to whole"
            " pages of 64. Default: a share of the free memory.",
            show_default=False,
        ),
    ] = None,
    sessions_per_client: Annotated[
        int, typer.Option(help="Sessions that one client may have, open or in line.")
    ] = 256,
    tokens_per_client: Annotated[
        int | None,
        typer.Option(
            help="Tokens of K/V cache that one client may have. Default: as many as there are.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads to compute with. Default: one a core.", show_default=False),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of a Hugging Face name.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Option(help="A name that people see in the status.")] = "",
    json_logs: Annotated[
        bool, typer.Option("--json-logs", help="One JSON object a line on standard output.")
    ] = False,
    stats: Annotated[
        float | None,
        typer.Option(
            help="Seconds between two reports of load and speed. Default: none.",
            metavar="SECONDS",
            show_default=False,
        ),
    ] = None,
    drain_timeout: Annotated[
        float, typer.Option(help="Seconds that running sessions get when the server stops.")
    ] = 5.0,
) -> None:
    """Host blocks of a language model in a swarm, until Ctrl-C.

    Without --peers it begins a new swarm and prints the address to join with.
    """
    printer = EventPrinter(json_logs)

    def command() -> None:
        from swarm.server.config import ServerConfig, make_config

        values: dict[str, object] = {
            "model": model,
            "blocks": blocks,
            "peers": split_addresses(peers or ()),
            "announce": split_addresses(announce or ()),
            "identity": identity,
            "dtype": dtype,
            "device": device,
            "cache_tokens": cache_tokens,
            "sessions_per_client": sessions_per_client,
            "tokens_per_client": tokens_per_client,
            "threads": threads,
            "revision": revision,
            "name": name,
            "stats_s": stats,
            "drain_timeout_s": drain_timeout,
        }
        if listen:
            values["listen"] = split_addresses(listen)
        _serve(make_config(ServerConfig, **values), printer)

    run(command, printer.error)


def _serve(config: "ServerConfig", printer: EventPrinter) -> None:
    from swarm.server.threads import limit_threads, pick_threads

    limit_threads(pick_threads(config.threads))

    def make() -> Serving:
        from swarm.server.server import Server

        return Server(config, on_event=printer)

    serve(make)


def main() -> None:
    """Entry point of the program."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    run_program(app, "swarm-server", repeat_address_options(sys.argv[1:]))
