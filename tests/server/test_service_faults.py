"""Mistakes of our own: one session pays for them, and its room comes back."""

import asyncio

from service_world import World, in_world, opened, tokens

from swarm.sessions.hop import LEASE_S
from swarm.sessions.messages import Close, Fail, FailKind, Held, Open


class BrokenOnce:
    """Raises at its first call, and then does what it stands for."""

    def __init__(self, works):
        self._works = works
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 1:
            raise ZeroDivisionError("a mistake of our own")
        return self._works(*args, **kwargs)


def test_a_mistake_while_a_lease_lapses_ends_neither_the_clock_nor_other_leases(monkeypatch):
    async def story(w: World) -> None:
        server, client = await w.server(), await w.client()
        broken = BrokenOnce(server.engine.release)
        monkeypatch.setattr(server.engine, "release", broken)
        for _ in range(2):
            await client.send(server, Open(client.sign(client.grant([server])), 0))
            await client.receive(Held)
            await asyncio.sleep(1)
        await asyncio.sleep(LEASE_S + 1)
        assert broken.calls == 2
        assert server.service.session_count == 0
        assert server.admission.free_tokens == server.admission.capacity_tokens
        server.engine.rooms.clear()

    in_world(story)


def test_a_mistake_while_a_client_is_told_of_a_failure_keeps_no_room(monkeypatch):
    async def story(w: World) -> None:
        (server,), client, grant = await opened(w)
        other = await client.open([server])
        monkeypatch.setattr(server.links, "send", BrokenOnce(server.links.send))
        two_rows = {"starts": (0, 0), "counts": (1, 0)}
        await client.push(server, grant, tokens(1), **two_rows)
        await asyncio.sleep(1)
        assert server.service.session_count == 1
        await client.push(server, other, tokens(1))
        assert (await client.receive_output())[0].session == other.session
        await client.push(server, grant, tokens(1))
        assert (await client.receive(Fail)).why is FailKind.UNKNOWN_SESSION

    in_world(story)


def test_all_sessions_of_a_lost_client_end_although_one_of_them_fails(monkeypatch):
    async def story(w: World) -> None:
        (server,), client, _ = await opened(w)
        await client.open([server])
        monkeypatch.setattr(server.engine, "release", BrokenOnce(server.engine.release))
        await w.vanish(client)
        await asyncio.sleep(30)
        assert server.service.session_count == 0
        server.engine.rooms.clear()

    in_world(story)


def test_room_comes_back_although_the_backups_are_not_forgotten_in_order(monkeypatch):
    async def story(w: World) -> None:
        (server,), client, grant = await opened(w)
        monkeypatch.setattr(server.service.backups, "forget", BrokenOnce(lambda hop: None))
        await client.send(server, Close(grant.session))
        await asyncio.sleep(1)
        assert server.service.session_count == 0
        server.engine.rooms.clear()

    in_world(story)
