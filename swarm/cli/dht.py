"""`swarm-dht`: a bootstrap peer without blocks."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from swarm.cli.arguments import (
    Announce,
    Listen,
    Peers,
    Version,
    repeat_address_options,
    split_addresses,
)
from swarm.cli.errors import run, run_program
from swarm.cli.events import EventPrinter, LastingPrinter
from swarm.cli.logs import log_to_stderr
from swarm.cli.serving import Serving, serve

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def dht(
    peers: Peers = None,
    listen: Listen = None,
    announce: Announce = None,
    identity: Annotated[
        Path | None,
        typer.Option(
            help="Key file of the peer id; made if absent. Default: one in your data folder.",
            show_default=False,
        ),
    ] = None,
    json_logs: Annotated[
        bool, typer.Option("--json-logs", help="One JSON object a line on standard output.")
    ] = False,
    version: Version = False,
) -> None:
    """Keep a swarm together: an address that others join by, without hosting blocks.

    Give it a fixed port and --identity, and its address stays the same.
    """
    printer = LastingPrinter(EventPrinter(json_logs))

    def command() -> None:
        from swarm.server.config import Listening, make_config

        values: dict[str, object] = {
            "peers": split_addresses(peers or ()),
            "announce": split_addresses(announce or ()),
            "identity": identity,
        }
        if listen:
            values["listen"] = split_addresses(listen)
        config = make_config(Listening, **values)

        def make() -> Serving:
            from swarm.server.bootstrap import BootstrapPeer

            return BootstrapPeer(config, on_event=printer)

        try:
            serve(make)
        finally:
            printer.close()

    run(command, printer.error)


def main() -> None:
    """Entry point of the program."""
    log_to_stderr()
    run_program(app, "swarm-dht", repeat_address_options(sys.argv[1:]))
