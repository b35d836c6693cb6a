"""Which of a server's addresses others should use, and who can reach it there."""

import ipaddress
from collections.abc import Sequence
from enum import IntEnum

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
