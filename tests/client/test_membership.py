"""One swarm for all models of a process with the same peers."""

import asyncio
import os
import threading
from typing import ClassVar

import pytest

from swarm.client import membership
from swarm.client.membership import Membership
from swarm.client.runtime import Runtime
from swarm.client.settings import ClientSettings
from swarm.errors import SwarmError, UnreachablePeerError, UsageError

PEERS = ("/ip4/127.0.0.1/tcp/1/p2p/a", "/ip4/127.0.0.1/tcp/2/p2p/b")


class FakeSwarm:
    made: ClassVar[list] = []

    def __init__(self, peers):
        self.peers = peers
        self.closed = threading.Event()

    @classmethod
    async def join(cls, peers, settings):
        await asyncio.sleep(0)
        if "nobody" in peers:
            raise UnreachablePeerError("nobody answers")
        cls.made.append(cls(peers))
        return cls.made[-1]

    async def close(self):
        self.closed.set()


@pytest.fixture(autouse=True)
def made(monkeypatch):
    monkeypatch.setattr(membership, "Swarm", FakeSwarm)
    monkeypatch.setattr(FakeSwarm, "made", [])
    return FakeSwarm.made


def test_it_is_shared_and_closed_by_the_last(made):
    settings = ClientSettings()
    one, two = Membership(PEERS, settings), Membership(PEERS[::-1], settings)
    assert len(made) == 1
    assert one.get()[1] is two.get()[1]
    one.close()
    one.close()
    assert not made[0].closed.is_set()
    with pytest.raises(SwarmError, match="left the swarm"):
        one.get()
    two.close()
    assert made[0].closed.is_set()
    three = Membership(PEERS, settings)
    assert len(made) == 2
    three.close()


def test_other_peers_or_settings_are_another_swarm(made):
    members = [
        Membership(PEERS, ClientSettings()),
        Membership(PEERS[:1], ClientSettings()),
        Membership(PEERS, ClientSettings(window=1)),
    ]
    assert len(made) == 3
    for member in members:
        member.close()


def test_a_finalizer_does_not_wait(made):
    member = Membership(PEERS, ClientSettings())
    member.close_soon()
    assert made[0].closed.wait(10)


def test_a_finalizer_leaves_although_another_thread_is_joining(made):
    member = Membership(PEERS, ClientSettings())
    with membership._lock:
        member.close_soon()
        assert not made[0].closed.wait(0.2)
    assert made[0].closed.wait(10)
    assert not membership._joined


def test_the_end_of_the_program_waits_for_a_swarm_that_is_being_left(made, monkeypatch):
    begun = threading.Event()

    async def close(swarm):
        begun.set()
        await asyncio.sleep(0.2)
        swarm.closed.set()

    loop = Runtime()
    monkeypatch.setattr(membership, "runtime", lambda: loop)
    monkeypatch.setattr(FakeSwarm, "close", close)
    Membership(PEERS, ClientSettings()).close_soon()
    assert begun.wait(10)
    loop.stop()
    assert made[0].closed.is_set()


def test_what_a_fork_has_closed_stays_closed(made, monkeypatch):
    member = Membership(PEERS, ClientSettings())
    with monkeypatch.context() as fork:
        fork.setattr(os, "getpid", lambda: -1)
        member.close()
        with pytest.raises(SwarmError, match="left the swarm"):
            member.get()
    assert len(made) == 1
    assert not made[0].closed.is_set()
    membership._joined.clear()


def test_one_address_as_text(made):
    Membership(PEERS[0], ClientSettings()).close()
    assert made[0].peers == PEERS[:1]


def test_no_peers():
    with pytest.raises(UsageError, match="--peers"):
        Membership((), ClientSettings())


def test_a_swarm_that_cannot_be_joined_is_not_kept():
    for _ in range(2):
        with pytest.raises(UnreachablePeerError):
            Membership(("nobody",), ClientSettings())
