"""Links to the next hop: the directory helps, and never hinders."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from service_world import World, in_world, tokens

from swarm.errors import PeerTimeoutError, UnreachablePeerError
from swarm.scheduling.classes import ServiceClass
from swarm.server import outgoing as outgoing_module
from swarm.server.outgoing import Outgoing
from swarm.sessions.messages import Commit, Fail, FailKind, Held, Open, Replay
from swarm.spans import PeerId, SessionId, Span
from swarm.wire.identity import Identity
from swarm.wire.virtual_time import run

PEER = PeerId("a-server-00")


def test_the_directory_is_asked_only_after_what_is_known_and_may_fail() -> None:
    calls: list[str] = []
    lost: list[str] = []

    async def connect(peer: PeerId, timeout_s: float) -> None:
        calls.append("connect")
        if calls.count("connect") == 1:
            raise UnreachablePeerError("no address", peer=peer)

    async def locate() -> None:
        calls.append("locate")
        await asyncio.sleep(3)
        raise PeerTimeoutError("no directory", peer=PEER)

    async def main() -> None:
        links = SimpleNamespace(stats=lambda _: None, connect=connect, memory_bytes=1 << 20)
        outgoing = Outgoing(
            cast(Any, links), locate, lambda _, why: lost.append(why), lambda *_: None
        )
        outgoing.prepare(PEER)
        await asyncio.sleep(20)
        await outgoing.close()

    run(main())
    assert calls == ["connect", "locate", "connect"]
    assert not lost


def test_what_waits_for_links_follows_the_memory_that_links_have() -> None:
    """On a machine with little of it a silent hop costs no more than a link does."""
    full: list[SessionId] = []

    async def never(peer: PeerId, timeout_s: float) -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        links = SimpleNamespace(stats=lambda _: None, connect=never, memory_bytes=1 << 20)
        outgoing = Outgoing(
            cast(Any, links), None, lambda *_: None, lambda session, _: full.append(session)
        )
        outgoing.prepare(PEER)
        for number in range(32):
            session = bytes([number]) * 16
            output = [memoryview(bytes(1 << 16))]
            outgoing.send(PEER, Commit(session, 0), output, ServiceClass.DECODE, session)
        await asyncio.sleep(0)
        await outgoing.close()

    run(main())
    assert full == [bytes([number]) * 16 for number in range(15, 32)]


def test_what_waits_for_a_link_that_is_being_made_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client asks for the same outputs again and again, over a hop that does not answer."""
    monkeypatch.setattr(outgoing_module, "MAX_WAITING_BYTES", 1 << 16)

    async def story(w: World) -> None:
        server, client, nobody = await w.server(), await w.client(), Identity.create().peer_id
        network = w.hub.network(nobody)
        w.hub.isolate(nobody)
        grant = client.grant([server, SimpleNamespace(peer=nobody, span=Span(2, 4))])
        await client.send(server, Open(client.sign(grant), 0))
        await client.receive(Held)
        await client.send(server, Commit(grant.session, 0))
        await client.push(server, grant, tokens(1))
        await asyncio.sleep(0.1)  # until it is computed
        for seq in range(1, 101):
            again = Replay(grant.session, 0, seq, (0,), (1,), (), 1)
            await client.send(server, again)
        assert (await client.receive(Fail, 1.0)).why is FailKind.PEER_LOST
        assert server.service.session_count == 0
        assert server.service._outgoing is not None
        (connecting,) = server.service._outgoing._connecting.values()
        assert connecting.waiting_bytes.total() <= 1 << 14
        assert len(connecting.waiting) <= 16
        await network.close()

    in_world(story)
