"""Clients by where they come from, and what crowds of them get; on a virtual clock."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.client_groups import UNKNOWN, ClientGroups, group_of_address
from swarm.scheduling.fair_queue import Entry, FairQueue, Policy

PREFILL = ServiceClass.PREFILL


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("/ip4/198.51.100.77/tcp/4001", "198.51.100.0/24"),
        ("/ip4/198.51.100.1/udp/1/quic-v1", "198.51.100.0/24"),
        ("/ip6/2001:db8:1:2:3::4/tcp/1", "2001:db8:1::/48"),
        ("/ip6/::ffff:198.51.100.9/tcp/1", "198.51.100.0/24"),
        ("/ip4/203.0.113.5/tcp/1/p2p/Relay/p2p-circuit", "relay Relay"),
        ("/ip4/203.0.113.5/tcp/1/p2p/Relay/p2p-circuit/p2p/Client", "relay Relay"),
        ("/p2p-circuit", UNKNOWN),
        ("/dns4/example.org/tcp/1", UNKNOWN),
        ("/ip4/999.1.1.1/tcp/1", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_the_group_of_an_address(address: str, group: str) -> None:
    assert group_of_address(address) == group


def test_named_peers_and_networks_are_known_and_all_others_strangers() -> None:
    groups = ClientGroups(["12D3Friend", "192.168.0.0/16"])
    groups.learn("12D3Friend", "/ip4/198.51.100.1/tcp/1")
    groups.learn("cousin", "/ip4/192.168.7.1/tcp/1")
    groups.learn("liar", "/ip4/192.168.7.1/tcp/1/p2p/Relay/p2p-circuit")
    groups.learn("other", "/ip4/198.51.100.2/tcp/1")
    assert groups("12D3Friend") == ("known", "12D3Friend", "12D3Friend")
    assert groups("cousin") == ("known", "192.168.0.0/16", "cousin")
    assert groups("liar") == ("strangers", "relay Relay", "liar")
    assert groups("other") == ("strangers", "198.51.100.0/24", "other")
    assert groups("nobody") == ("strangers", UNKNOWN, "nobody")
    with pytest.raises(ValueError, match="host bits"):
        ClientGroups(["192.168.0.1/16"])


def test_a_client_that_moves_is_counted_where_it_is_and_old_ones_are_forgotten() -> None:
    groups = ClientGroups()
    groups.learn("one", "/ip4/198.51.100.1/tcp/1")
    groups.learn("one", "/ip4/203.0.113.1/tcp/1")
    assert groups("one") == ("203.0.113.0/24", "one")
    for number in range(20_000):
        groups.learn(f"client-{number}", "/ip4/198.51.100.1/tcp/1")
    assert groups("one") == (UNKNOWN, "one")
    assert len(groups._paths) <= 10_000


def served(queue: FairQueue[str], rounds: int) -> Counter[str]:
    """Everybody always has work; what each kind of client received."""
    received: Counter[str] = Counter()
    for _ in range(rounds):
        chosen = queue.pop()
        received[chosen.item] += chosen.cost
        queue.push(chosen)
    return received


def waiting(queue: FairQueue[str], item: str, client: str, cost: int = 1) -> None:
    queue.push(Entry(item, PREFILL, client, client.encode(), cost))


@settings(max_examples=20)
@given(st.integers(2, 1000), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))
def test_new_identities_of_one_prefix_get_one_groups_share(
    identities: int, honest: int, crowd_cost: int, honest_cost: int
) -> None:
    """Each honest client has a prefix of its own; a crowd has one, and ever new identities."""
    groups = ClientGroups()
    queue: FairQueue[str] = FairQueue(group_of=groups)
    for number in range(honest):
        groups.learn(f"honest-{number}", f"/ip4/203.0.{number}.1/tcp/1")
        waiting(queue, f"honest-{number}", f"honest-{number}", honest_cost)
    for number in range(identities):
        groups.learn(f"new-{number}", f"/ip4/198.51.100.{number % 256}/tcp/1")
    newcomer = iter(range(10**6))
    waiting(queue, "crowd", "new-0", crowd_cost)
    received: Counter[str] = Counter()
    for _ in range(100 * (honest + 1)):
        chosen = queue.pop()
        received[chosen.item] += chosen.cost
        if chosen.item == "crowd":
            waiting(queue, "crowd", f"new-{next(newcomer) % identities}", crowd_cost)
        else:
            queue.push(chosen)
    shares = [received["crowd"], *(received[f"honest-{n}"] for n in range(honest))]
    assert max(shares) - min(shares) <= 2 * max(crowd_cost, honest_cost)


@pytest.mark.parametrize(
    ("known", "strangers", "share"),
    [(1, 1, 0.5), (1, 1000, 0.5), (3, 1, 0.25), (1, 3, 0.5), (9, 1, 0.2), (50, 1, 0.2)],
)
def test_strangers_together_have_a_floor_and_a_cap(
    known: int, strangers: int, share: float
) -> None:
    groups = ClientGroups([f"known-{number}" for number in range(known)])
    queue: FairQueue[str] = FairQueue(Policy(strangers=(0.2, 0.5)), groups)
    for number in range(known):
        waiting(queue, "known", f"known-{number}", 3)
    for number in range(strangers):
        groups.learn(f"other-{number}", f"/ip4/20.{number // 256}.{number % 256}.1/tcp/1")
        waiting(queue, "strangers", f"other-{number}", 2)
    received = served(queue, 3000)
    assert received["strangers"] / received.total() == pytest.approx(share, abs=0.01)


def test_strangers_have_everything_that_nobody_else_wants() -> None:
    groups = ClientGroups(["friend"])
    queue: FairQueue[str] = FairQueue(group_of=groups)
    waiting(queue, "stranger", "stranger")
    assert served(queue, 50) == {"stranger": 50}
    waiting(queue, "friend", "friend")
    received = served(queue, 100)
    assert abs(received["friend"] - received["stranger"]) <= 2, "idleness earned nothing"
