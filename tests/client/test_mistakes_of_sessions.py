"""Mistakes of our own in the loop: who waits is told, and others hear what they have to."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest
import torch
from test_routes_of_sessions import TARGET, FakeSwarm, NoRuntime, Server

from swarm.client.chain import ChainStep
from swarm.client.encoding import encode_piece
from swarm.client.opening import open_session
from swarm.client.pieces import cut
from swarm.client.session_call import SessionCall
from swarm.client.settings import ClientSettings
from swarm.client.swarm import Swarm
from swarm.errors import MissingBlocksError
from swarm.sessions.messages import Grant, Held, Hop, Output, StatusReply, StatusRequest
from swarm.wire.entrance import MemoryMember
from swarm.wire.identity import Identity
from swarm.wire.links import Links
from swarm.wire.memory import MemoryNetworkHub
from swarm.wire.virtual_time import run


def mistaken(*args, **kwargs):
    raise ZeroDivisionError("a mistake of our own")


def sent_call(session) -> SessionCall:
    """A step that was sent."""
    hidden = torch.zeros(1, TARGET.hidden_size)
    step = ChainStep(
        hidden=hidden, starts=(0,), counts=(1,), position_ids=[0], keep=1, operation=None
    )
    (piece,) = cut(step.counts, step.keep, 512)
    call = SessionCall([piece], None)
    session._add(call, encode_piece(piece, step, torch.float32))
    return call


def waiting_call(session) -> SessionCall:
    """A step that was sent and not answered."""
    call = sent_call(session)
    assert not call.done.done()
    return call


def test_who_waits_for_an_answer_is_told_at_once(monkeypatch):
    async def story():
        servers = [Server("0:2"), Server("2:4")]
        swarm = FakeSwarm(*servers)
        session = await open_session(NoRuntime(), swarm, TARGET, 1, 10)
        call = waiting_call(session)
        monkeypatch.setattr(session._client, "handle", mistaken)
        answer = Output(b"s" * 16, 0, 0, (0,), (1,), (), 0.0, 0.0)
        session.received(servers[-1].peer, answer, memoryview(b""))
        with pytest.raises(ZeroDivisionError):
            call.done.result(0)
        assert swarm.listeners == {}
        assert [server.kinds[-1] for server in servers] == ["Close"] * 2

    asyncio.run(story())


def test_who_asks_later_is_told_why_the_session_is_over():
    async def story():
        servers = [Server("0:2"), Server("2:4")]
        session = await open_session(NoRuntime(), FakeSwarm(*servers), TARGET, 1, 10)
        session._lost.add(servers[1].peer)

        async def in_vain():
            raise MissingBlocksError("nobody took over", ("2:4",))

        await session._run_mending(SimpleNamespace(run=in_vain))
        assert session.is_over
        call = sent_call(session)
        with pytest.raises(MissingBlocksError, match="nobody took over"):
            call.done.result(0)

    asyncio.run(story())


def test_who_waits_is_told_when_going_on_elsewhere_fails(monkeypatch):
    async def story():
        servers = [Server("0:2"), Server("2:4"), Server("2:4")]
        swarm = FakeSwarm(*servers)
        session = await open_session(NoRuntime(), swarm, TARGET, 1, 10)
        call = waiting_call(session)
        monkeypatch.setattr(session._client, "reroute", mistaken)
        hops = tuple(Hop(swarm.all[peer].peer, 0, 4) for peer in list(swarm.all)[-1:])
        grant: Grant = msgspec.structs.replace(session._client.grant, route=1, hops=hops)

        async def found():
            return grant, None

        await session._run_mending(SimpleNamespace(run=found))
        with pytest.raises(ZeroDivisionError):
            call.done.result(0)
        assert swarm.listeners == {}
        assert "Close" in swarm.all[grant.hops[0].peer].kinds
        assert all("Close" in swarm.all[hop.peer].kinds for hop in session.route)

    asyncio.run(story())


def test_who_opens_is_told_of_a_mistake_while_answers_are_read(monkeypatch):
    servers = [Server("0:2"), Server("2:4", "silent")]
    swarm = FakeSwarm(*servers)

    def answered():
        (opening,) = swarm.listeners.values()
        monkeypatch.setattr(opening._opening, "handle", mistaken)
        held = Held(opening._opening.grant.session, 0)
        opening.received(servers[0].peer, held, memoryview(b""))

    swarm.on_silent = lambda: asyncio.get_running_loop().call_soon(answered)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(open_session(NoRuntime(), swarm, TARGET, 1, 10))
    assert swarm.listeners == {}


class Peer:
    """A peer of a swarm in memory, which answers a question for its status with its name."""

    def __init__(self, hub: MemoryNetworkHub, name: str, late_s: float = 0.0) -> None:
        self.identity = Identity.create()
        self.name = name
        self.late_s = late_s
        self.links = Links(hub.network(self.identity.peer_id), self)

    @property
    def record(self):
        return SimpleNamespace(peer=self.identity.peer_id, addresses=())

    def on_message(self, peer, message, payload):
        if isinstance(message, StatusRequest):
            asyncio.get_running_loop().call_later(self.late_s, self.tell, peer, message.request)

    def tell(self, peer, request):
        status = msgspec.json.encode({"name": self.name})
        self.links.send(peer, StatusReply(request, status))

    def on_link_lost(self, peer, reason): ...


class Listener:
    def __init__(self, told):
        self.told = told

    def peer_lost(self, peer, reason):
        self.told.append(peer)
        if len(self.told) == 1:
            mistaken()

    def received(self, sender, message, payload): ...
    def tick(self, now): ...


def test_all_sessions_hear_of_a_lost_peer_and_of_the_end_although_one_fails():
    async def story():
        hub = MemoryNetworkHub()
        network = MemoryMember(hub, Identity.create(), listens=False)
        swarm = Swarm(network, ClientSettings())
        await swarm._links.start()
        told, server = [], Identity.create().peer_id
        swarm.attach(b"1" * 16, Listener(told))
        swarm.attach(b"2" * 16, Listener(told))
        swarm.on_link_lost(server, "gone")
        assert told == [server, server]
        told.clear()
        await swarm.close()
        assert told == [network.peer_id] * 2
        assert network.is_closed

    run(story())


def test_outputs_of_sessions_that_nobody_has_are_counted():
    """Who sends too many of them is read more slowly."""

    async def story():
        network = MemoryMember(MemoryNetworkHub(), Identity.create(), listens=False)
        swarm = Swarm(network, ClientSettings())
        answer = Output(b"1" * 16, 0, 0, (0,), (1,), (), 0.0, 0.0)
        assert swarm.on_message(Identity.create().peer_id, answer, memoryview(b""))
        swarm.attach(answer.session, Listener([]))
        assert not swarm.on_message(Identity.create().peer_id, answer, memoryview(b""))
        await swarm.close()

    run(story())


def test_nobody_answers_for_another():
    async def story():
        hub = MemoryNetworkHub()
        swarm = Swarm(MemoryMember(hub, Identity.create(), listens=False), ClientSettings())
        await swarm._links.start()
        asked, liar = Peer(hub, "asked", late_s=1.0), Peer(hub, "liar")
        for peer in (asked, liar):
            await peer.links.start()
            await swarm.connect(peer.record, 5.0)
        question = asyncio.ensure_future(swarm.ask_status(asked.record, 5.0))
        await asyncio.sleep(0.1)
        liar.tell(swarm.identity.peer_id, 1)
        assert await question == {"name": "asked"}
        for peer in (swarm, asked.links, liar.links):
            await peer.close()

    run(story())
