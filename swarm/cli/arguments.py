"""Options of several programs. Those about addresses take several values: `--peers A B`, `--peers A
--peers B`."""

from collections.abc import Iterable, Sequence
from typing import Annotated, TypeAlias

import typer

from swarm.errors import UsageError

Model: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        help="A folder, a GGUF file or a Hugging Face name. Default: SmolLM2-135M-Instruct.",
        show_default=False,
    ),
]
Peers: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="Addresses of members of the swarm to join. Default: a new swarm begins here.",
        metavar="ADDR...",
        show_default=False,
        rich_help_panel="Network",
    ),
]
Listen: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="Addresses to listen on. Default: /ip4/0.0.0.0/tcp/0, a free port.",
        metavar="ADDR...",
        show_default=False,
        rich_help_panel="Network",
    ),
]
Announce: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="Addresses to tell others in place of --listen's, as behind a forwarded port.",
        metavar="ADDR...",
        show_default=False,
        rich_help_panel="Network",
    ),
]


def _show_version(asked: bool) -> None:
    if asked:
        from swarm.server.status import program_version
        from swarm.wire.frames import PROTOCOL_VERSION

        typer.echo(f"swarm {program_version()}, protocol {PROTOCOL_VERSION}")
        raise typer.Exit


Version: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--version",
        help="Show the versions of the program and of the protocol.",
        callback=_show_version,
        is_eager=True,
    ),
]

ADDRESS_OPTIONS = ("--peers", "--listen", "--announce")
_ADDRESS_STARTS = ("/ip4/", "/ip6/", "/dns/", "/dns4/", "/dns6/", "/dnsaddr/")


def repeat_address_options(arguments: Sequence[str]) -> list[str]:
    """Writes the option again before each further address, as the parser wants it.

    Only words that begin like an address are taken, so that a model's folder after the list
    stays a model's folder.
    """
    repeated: list[str] = []
    option: str | None = None
    awaiting_first = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if name in ADDRESS_OPTIONS:
            option, awaiting_first = name, not equals
        elif awaiting_first:
            awaiting_first = False
        elif option is not None and argument.startswith(_ADDRESS_STARTS):
            repeated.append(option)
        else:
            option = None
        repeated.append(argument)
    return repeated


def split_addresses(values: Iterable[str]) -> tuple[str, ...]:
    """Addresses that were given one by one or with commas between them."""
    addresses = tuple(part.strip() for value in values for part in value.split(","))
    if not all(addresses):
        raise UsageError("an empty address; leave the option out, or give a whole address")
    return addresses
