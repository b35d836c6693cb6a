"""Options that take several values: `--peers A B` as well as `--peers A --peers B`."""

from collections.abc import Iterable, Sequence

from swarm.errors import UsageError

ADDRESS_OPTIONS = ("--peers", "--listen", "--announce")
_ADDRESS_STARTS = ("/ip4/", "/ip6/", "/dns/", "/dns4/", "/dns6/")


def repeat_address_options(arguments: Sequence[str]) -> list[str]:
    """Writes the option again before each further address, as the parser wants it.

    Only words that begin like an address are taken, so that a model's folder after the list
    stays a model's folder.
    """
    repeated: list[str] = []
    option: str | None = None
    awaiting_first = False
    for argument in arguments:
        if argument in ADDRESS_OPTIONS:
            option, awaiting_first = argument, True
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
