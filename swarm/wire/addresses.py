"""Multiaddresses such as `/ip4/1.2.3.4/tcp/31330/p2p/12D3KooW...`: checking and taking apart.

libp2p has the final word; these checks exist so that a mistake is answered with one clear line.
`/memory/1` is the first network of this process that is no real one (`swarm.wire.memory`).
"""

import ipaddress
import re
import socket
from contextlib import closing

from swarm.errors import AddressError
from swarm.spans import PeerId
from swarm.wire.identity import is_peer_id

_ADDRESS = re.compile(
    r"/(?P<kind>ip4|ip6|dns|dns4|dns6|dnsaddr|memory)/(?P<host>[^/]+)"
    r"(?:/(?P<transport>tcp|udp)/(?P<port>\d{1,5})(?P<rest>(?:/[a-z0-9-]+)*?))?"
    r"(?P<circuit>(?:/p2p/[^/]+)?/p2p-circuit)?"
    r"(?:/p2p/(?P<peer>[^/]+))?",
    re.ASCII,
)
_EXAMPLE = "an address is written as /ip4/1.2.3.4/tcp/31330"
_TRANSPORTS = {"tcp": ("", "/ws", "/wss", "/tls/ws"), "udp": ("/quic-v1",)}
"""What our libp2p daemon speaks over each, as it stands behind the port."""
_LISTENS = ("", "/ws", "/quic-v1")
"""Of these, what needs no certificate."""
_LISTEN_EXAMPLE = (
    "write it as /ip4/0.0.0.0/tcp/31330 (this machine's address, port 0 for any free one), or"
    " /ip4/0.0.0.0/udp/31330/quic-v1"
)


def check_address(address: str) -> str:
    """The address itself. Raises AddressError when it is malformed."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise AddressError(f"{address!r} is not a multiaddress; {_EXAMPLE}")
    kind, host, port = match["kind"], match["host"], match["port"]
    if kind in ("ip4", "ip6"):
        try:
            version = ipaddress.ip_address(host).version
        except ValueError as error:
            raise AddressError(f"{host!r} in {address} is not an IP address; {_EXAMPLE}") from error
        # Python takes names of network cards behind a %; multiaddresses have no place for them.
        if (kind, version) not in (("ip4", 4), ("ip6", 6)) or "%" in host:
            raise AddressError(f"{host} in {address} is not an {kind} address; {_EXAMPLE}")
    if port is not None and int(port) > 65535:
        raise AddressError(f"port {port} in {address} is over 65535")
    if port is not None and match["rest"] not in _TRANSPORTS[match["transport"]]:
        raise AddressError(
            f"nothing goes over /{match['transport']}/{port}{match['rest']} in {address}; write"
            f" /tcp/{port} or /udp/{port}/quic-v1 in its place"
        )
    if match["peer"] is not None and not is_peer_id(match["peer"]):
        raise AddressError(f"{match['peer']!r} in {address} is not a peer id of this swarm's kind")
    return address


def split_peer(address: str) -> tuple[str, PeerId]:
    """`(the address without the peer, the peer)`. Raises AddressError when no peer is named."""
    match = _ADDRESS.fullmatch(check_address(address))
    if match is None or match["peer"] is None:
        raise AddressError(
            f"{address} does not name its peer; copy the whole address that the server prints "
            "(it ends with /p2p/ and the peer's id)"
        )
    return address.removesuffix(f"/p2p/{match['peer']}"), PeerId(match["peer"])


def is_in_memory(address: str) -> bool:
    """Whether the address is one of a network within this process."""
    return address.startswith("/memory/")


def is_relayed(address: str) -> bool:
    """Whether the address goes over a relay."""
    return "/p2p-circuit" in address


def check_listening(address: str) -> str:
    """The address itself. Raises AddressError when no machine can listen on it."""
    _listening(address)
    return address


def with_fixed_port(address: str) -> str:
    """A listening address whose port 0 is replaced by a free one.

    Raises AddressError when the address is malformed, is not this machine's, or its port is in use.
    (libp2p itself shares a port that is in use with its other user, silently.)
    """
    match = _listening(address)
    port = _probe(match["kind"], match["host"], match["transport"], int(match["port"]), address)
    start, end = match.span("port")
    return f"{address[:start]}{port}{address[end:]}"


def _listening(address: str) -> re.Match[str]:
    match = _ADDRESS.fullmatch(check_address(address))
    if match is None or match["kind"] not in ("ip4", "ip6"):
        why = "it is no IP address of this machine"
    elif match["port"] is None:
        why = "it has no port"
    elif match["circuit"] is not None or match["peer"] is not None:
        why = "it names a peer, and who listens is named by its --identity"
    elif match["rest"] not in _LISTENS:
        why = f"{match['rest']} needs a certificate, which no option gives"
    else:
        return match
    raise AddressError(f"cannot listen on {address}: {why}; {_LISTEN_EXAMPLE}")


def _probe(kind: str, host: str, transport: str, port: int, address: str) -> int:
    family = socket.AF_INET if kind == "ip4" else socket.AF_INET6
    stream = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    try:
        with closing(socket.socket(family, stream)) as probe:
            if transport == "tcp":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise AddressError(
            f"cannot listen on {address}: {error.strerror or error}; choose another port or "
            "address, or port 0 for any free port"
        ) from error
