"""Which of a server's addresses others should use, and who can reach it there."""

import ipaddress
from collections.abc import Sequence
from enum import IntEnum

from swarm.errors import AddressError
from swarm.spans import PeerId
from swarm.wire.addresses import check_address


class Reach(IntEnum):
    """Who can dial an address; lower is wider."""

    ANYBODY = 0
    LOCAL_NETWORK = 1
    THIS_MACHINE = 2

    @property
    def in_words(self) -> str:
        return (
            "everybody, if no firewall or router is in the way",
            "your local network only",
            "this machine only",
        )[self]


def reach_of(address: str) -> Reach:
    """Raises `AddressError` for what is no address."""
    _, kind, host, *_ = check_address(address).split("/")
    if kind == "memory":
        return Reach.THIS_MACHINE
    if not kind.startswith("ip"):
        return Reach.ANYBODY
    ip = ipaddress.ip_address(host)
    if ip.is_loopback:
        return Reach.THIS_MACHINE
    return Reach.ANYBODY if ip.is_global else Reach.LOCAL_NETWORK


def check_dialable(address: str) -> str:
    """The address itself. Raises `AddressError` if nobody can dial it, wherever they are."""
    _, kind, host, *rest = check_address(address).split("/")
    if kind == "memory":
        return address
    if len(rest) < 2 or rest[0] not in ("tcp", "udp") or not int(rest[1]):
        raise AddressError(
            f"{address} names no port that others can dial; give the one that is forwarded, as in"
            " /ip4/203.0.113.7/tcp/31330"
        )
    if kind.startswith("ip") and ipaddress.ip_address(host).is_unspecified:
        raise AddressError(
            f"{address} is not the address of a machine; give the one that others dial, as in"
            " /ip4/203.0.113.7/tcp/31330"
        )
    return address


def check_announced(announced: Sequence[str], peer: PeerId) -> None:
    """Raises `AddressError` if an address names another peer than us."""
    for address in announced:
        _, named, other = address.partition("/p2p/")
        if named and other != peer:
            raise AddressError(
                f"{address} is of another peer, and this one is {peer}; leave /p2p/... out, or use"
                " the --identity that it belongs to"
            )


def forwarding_advice(
    listen: Sequence[str], announced: Sequence[str], listening: Sequence[str]
) -> str | None:
    """What to say to whoever announces a forwarded port and listens on a port of chance."""
    if not announced or any(_port_of(address) != 0 for address in listen):
        return None
    port = _port_of(listening[0]) if listening else 0
    return (
        f"forward what comes for {announced[0]} to port {port} of this machine; the port changes"
        f" with the next start, unless --listen /ip4/0.0.0.0/tcp/{port} keeps it"
    )


def _port_of(address: str) -> int | None:
    parts = address.split("/")
    return int(parts[4]) if len(parts) > 4 and parts[4].isdigit() else None


def widest_first(addresses: Sequence[str]) -> list[str]:
    """The addresses that others should try, best first; loopback only if there is nothing else."""
    ordered = sorted(addresses, key=reach_of)
    beyond = [address for address in ordered if reach_of(address) is not Reach.THIS_MACHINE]
    return beyond or ordered


def join_addresses(listening: Sequence[str], announced: Sequence[str], peer: str) -> list[str]:
    """Whole addresses, with the peer's id, that others may try, best first: those that its owner
    announces, else those that it listens on."""
    if not announced:
        return widest_first(listening)
    return [one if "/p2p/" in one else f"{one}/p2p/{peer}" for one in announced]
