"""Multiaddresses that users type and records carry."""

import socket

import pytest

from swarm.errors import AddressError
from swarm.wire.addresses import check_address, check_listening, split_peer, with_fixed_port
from swarm.wire.identity import Identity

PEER = Identity(b"a" * 32).peer_id


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/127.0.0.1/tcp/0",
        f"/ip4/1.2.3.4/tcp/31330/p2p/{PEER}",
        f"/ip6/::1/tcp/31330/p2p/{PEER}",
        f"/dns4/swarm.example.org/tcp/31330/p2p/{PEER}",
        "/ip4/1.2.3.4/udp/31330/quic-v1",
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_addresses_that_are_well_formed(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost:31330",
        "/ip4/localhost/tcp/1",
        "/ip4/::1/tcp/1",
        "/ip6/1.2.3.4/tcp/1",
        "/ip6/fe80::1%eth0/tcp/1",
        "/ip4/1.2.3.4/tcp/\u0663",
        "/ip4/1.2.3.4/tcp/65536",
        "/ip4/1.2.3.4/tcp/",
        "/ip4/1.2.3.4/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "/unix/tmp/socket",
        "/ip4/1.2.3.4/tcp/1\n",
        "/ip4/1.2.3.4/tcp/1," + "/ip4/1.2.3.4/tcp/2",
        "/ip4/1.2.3.4/tcp/1/quic-v1",
        "/ip4/1.2.3.4/udp/1",
        f"/ip4/1.2.3.4/udp/1/p2p/{PEER}",
        "/ip4/1.2.3.4/udp/1/quic",
        "/dns4/swarm.example.org/tcp/1/carrier-pigeon",
    ],
)
def test_addresses_that_are_malformed(address: str) -> None:
    with pytest.raises(AddressError):
        check_address(address)


@pytest.mark.parametrize(
    "address", ["/ip4/0.0.0.0/tcp/0", "/ip4/127.0.0.1/tcp/0/ws", "/ip4/127.0.0.1/udp/0/quic-v1"]
)
def test_addresses_that_can_be_listened_on(address: str) -> None:
    assert check_listening(address) == address
    given, fixed = address.split("/"), with_fixed_port(address).split("/")
    assert int(fixed[4]) > 0 and fixed[:4] + fixed[5:] == given[:4] + given[5:]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("/ip4/0.0.0.0/udp/31330", "nothing goes over /udp/31330"),
        ("/ip4/0.0.0.0/tcp/31330/wss", "certificate"),
        ("/ip4/0.0.0.0", "no port"),
        ("/dns4/swarm.example.org/tcp/31330", "no IP address"),
        ("/memory/1", "no IP address"),
        (f"/ip4/0.0.0.0/tcp/31330/p2p/{PEER}", "names a peer"),
        (f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit", "names a peer"),
    ],
)
def test_addresses_that_nobody_can_listen_on(address: str, why: str) -> None:
    """One line names the address, what is wrong with it, and what would do."""
    with pytest.raises(AddressError, match=why) as caught:
        with_fixed_port(address)
    said = str(caught.value)
    assert address in said and "quic-v1" in said and "\n" not in said


def test_the_peer_is_split_off() -> None:
    assert split_peer(f"/ip4/1.2.3.4/tcp/5/p2p/{PEER}") == ("/ip4/1.2.3.4/tcp/5", PEER)
    with pytest.raises(AddressError, match="copy the whole address"):
        split_peer("/ip4/1.2.3.4/tcp/5")


def test_a_free_port_is_found_and_one_in_use_is_refused() -> None:
    found = with_fixed_port("/ip4/127.0.0.1/tcp/0")
    assert found.startswith("/ip4/127.0.0.1/tcp/") and not found.endswith("/0")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as libp2p does
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(AddressError, match="in use"):
            with_fixed_port(f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}")


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(AddressError, match=r"cannot listen on /ip4/192\.0\.2\.1/tcp/0"):
        with_fixed_port("/ip4/192.0.2.1/tcp/0")
