"""Which group a client is served in: identities are free, addresses less so.

All clients behind one prefix of the network share the service of one group, and so do all that
come through one relay, and all of whom nothing is known. Whom the operator names is a group of its
own. If anybody is named, all others are strangers, with a floor and a cap (`Policy.strangers`).
Pure: told where clients are.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from swarm.scheduling.service_counters import KNOWN, STRANGERS, Path

PREFIX_IPV4 = 24
PREFIX_IPV6 = 48
UNKNOWN = "unknown"
"""The group of clients whose address nobody has told."""
MAX_CLIENTS = 10_000
"""Remembered; those that were told longest ago are forgotten first."""

_IPv4_IN_IPv6 = IPv6Network("::ffff:0:0/96")


class ClientGroups:
    """A `group_of` for `FairQueue`: `(group, client)`, or `(kind, group, client)` if any client is
    named. May be asked in any thread."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        """`known`: peer ids, and networks such as `192.168.1.0/24`.

        Raises ValueError for a network with bits beyond its prefix.
        """
        names = list(known)
        self._named = frozenset(name for name in names if "/" not in name)
        self._networks = [ip_network(name) for name in names if "/" in name]
        self._has_known = bool(names)
        self._paths: dict[str, Path] = {}

    def learn(self, client: str, address: str) -> None:
        """A client was seen at this multiaddress; empty: nobody knows where it is."""
        self._paths.pop(client, None)
        self._paths[client] = self._path(client, address)
        if len(self._paths) > MAX_CLIENTS:
            del self._paths[next(iter(self._paths))]

    def group_at(self, client: str, address: str) -> Path:
        """In which group a client with this multiaddress is, without itself."""
        return self._path(client, address)[:-1]

    def __call__(self, client: str) -> Path:
        return self._paths.get(client) or self._path(client, "")

    def _path(self, client: str, address: str) -> Path:
        if not self._has_known:
            return group_of_address(address), client
        if client in self._named:
            return KNOWN, client, client
        ip = _direct_ip(address)
        for network in self._networks:
            if ip is not None and ip.version == network.version and ip in network:
                return KNOWN, str(network), client
        return STRANGERS, group_of_address(address), client


def group_of_address(address: str) -> str:
    """The prefix, or the relay, that a multiaddress is behind."""
    parts = address.split("/")
    if "p2p-circuit" in parts:
        before = parts[: parts.index("p2p-circuit")]
        return f"relay {before[-1]}" if "p2p" in before else UNKNOWN
    ip = _direct_ip(address)
    if ip is None:
        return UNKNOWN
    bits = PREFIX_IPV4 if ip.version == 4 else PREFIX_IPV6
    return str(ip_network((ip, bits), strict=False))


def _direct_ip(address: str) -> IPv4Address | IPv6Address | None:
    """The host of `/ip4/../tcp/..`; None for relayed addresses, names and nonsense."""
    parts = address.split("/")
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6") or "p2p-circuit" in parts:
        return None
    try:
        ip = ip_address(parts[2])
    except ValueError:
        return None
    if isinstance(ip, IPv6Address) and ip in _IPv4_IN_IPv6:
        return ip.ipv4_mapped
    return ip
