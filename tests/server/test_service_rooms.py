"""Room on a server: held, given back whatever ends a session, waited for, within quotas."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from raw_client import RawClient
from service_world import CAPACITY, PAGE, ToyServer, World, in_world, opened, session_of, tokens

from swarm.server.reception import Quotas
from swarm.sessions.admission import MAX_OVERTAKES
from swarm.sessions.hop import LEASE_S
from swarm.sessions.messages import (
    Close,
    Commit,
    Fail,
    FailKind,
    Grant,
    Held,
    Open,
    Refused,
    RefuseKind,
)
from swarm.wire.places import Places


async def _close(w: World, server: ToyServer, client: RawClient, grant: Grant) -> None:
    await client.send(server, Close(grant.session))
    await asyncio.sleep(0.1)


async def _goodbye(w: World, server: ToyServer, client: RawClient, grant: Grant) -> None:
    await client.links.close()
    await asyncio.sleep(0.1)


async def _killed(w: World, server: ToyServer, client: RawClient, grant: Grant) -> None:
    await w.vanish(client)
    await asyncio.sleep(15)


async def _cut_off(w: World, server: ToyServer, client: RawClient, grant: Grant) -> None:
    w.hub.partition(server.peer, client.peer)
    await asyncio.sleep(20)


async def _lifetime(w: World, server: ToyServer, client: RawClient, grant: Grant) -> None:
    await asyncio.sleep(grant.lifetime_s + 1)
    assert (await client.receive(Fail)).why is FailKind.EXPIRED


@pytest.mark.parametrize("ending", [_close, _goodbye, _killed, _cut_off, _lifetime])
def test_everything_comes_back_when_a_session_ends(
    ending: Callable[[World, ToyServer, RawClient, Grant], Awaitable[None]],
) -> None:
    async def story(w: World) -> None:
        server, client = await w.server(), await w.client()
        grant = await client.open([server], rows=2, length=PAGE + 1, lifetime_s=60.0)
        rows = {"starts": (0, 0), "counts": (2, 2), "position_ids": (0, 1, 0, 1)}
        await client.push(server, grant, tokens(4), **rows)
        await client.receive_output()
        assert server.admission.free_tokens == CAPACITY - 4 * PAGE
        assert server.engine.rooms == {session_of(grant): (2, PAGE + 1)}
        await ending(w, server, client, grant)
        server.assert_empty()

    in_world(story)


def test_a_client_that_comes_back_in_time_keeps_its_session() -> None:
    async def story(w: World) -> None:
        [server], client, grant = await opened(w)
        w.hub.reset(server.peer, client.peer)
        await asyncio.sleep(5)
        await client.push(server, grant, tokens(1))
        await client.receive_output()
        assert server.service.session_count == 1

    in_world(story)


def test_a_hold_lapses_without_commit() -> None:
    async def story(w: World) -> None:
        server, client = await w.server(), await w.client()
        grant = client.grant([server])
        await client.send(server, Open(client.sign(grant), 0))
        await client.receive(Held)
        await asyncio.sleep(LEASE_S / 2)
        assert server.service.session_count == 1
        await asyncio.sleep(LEASE_S)
        server.assert_empty()
        await client.send(server, Commit(grant.session, grant.route))
        assert (await client.receive(Fail)).why is FailKind.UNKNOWN_SESSION

    in_world(story)


def test_one_network_cannot_take_all_places_in_line() -> None:
    async def story(w: World) -> None:
        prefixes: dict[str, str] = {}
        quotas = Quotas(8, None, lambda client: (prefixes.get(client, "crowd"), client))
        server, holder = await w.server(quotas=quotas), await w.client()
        prefixes[holder.peer] = "its own"
        whole = await holder.open([server], length=CAPACITY)
        kept = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server.service._reception, "_places", Places(10))
            for _ in range(4):
                client = await w.client()
                await client.send(server, Open(client.sign(client.grant([server])), 0, wait_s=60))
                kept.append(client)
            refused = await kept.pop().receive(Refused)
            assert refused.why is RefuseKind.QUOTA and "from your network" in refused.detail
            assert server.service.waiting_count == 3
            stranger = await w.client()
            prefixes[stranger.peer] = "elsewhere"
            await stranger.send(server, Open(stranger.sign(stranger.grant([server])), 0, wait_s=60))
            await asyncio.sleep(0.1)
            assert server.service.waiting_count == 4
            await holder.send(server, Close(whole.session))
            for client in (*kept, stranger):
                await client.receive(Held)
            assert len(server.service._reception._places) == 0

    in_world(story)


def test_asking_twice_gives_one_room() -> None:
    async def story(w: World) -> None:
        server, client = await w.server(), await w.client()
        signed = client.sign(client.grant([server]))
        for attempt in (1, 2):
            await client.send(server, Open(signed, 0, attempt=attempt))
            assert (await client.receive(Held)).attempt == attempt
        assert server.admission.free_tokens == CAPACITY - PAGE

    in_world(story)


def test_a_client_has_a_quota_and_others_have_theirs() -> None:
    async def story(w: World) -> None:
        quotas = Quotas(sessions_per_client=2, tokens_per_client=3 * PAGE)
        server, client, other = await w.server(quotas=quotas), await w.client(), await w.client()
        await client.open([server])
        for changes in ({"length": 3 * PAGE}, {}):
            await client.send(server, Open(client.sign(client.grant([server], **changes)), 0))
            if changes:
                assert (await client.receive(Refused)).why is RefuseKind.QUOTA
        await client.receive(Held)
        await client.send(server, Open(client.sign(client.grant([server])), 0))
        assert (await client.receive(Refused)).why is RefuseKind.QUOTA
        await other.open([server])

    in_world(story)


# ---- the line


def test_who_waits_gets_the_room_of_a_session_that_nobody_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swarm.server.unused_sessions.UNUSED_S", 5.0)

    async def story(w: World) -> None:
        server, idle, busy, newcomer = await w.server(), *[await w.client() for _ in range(3)]
        unused = await idle.open([server], length=CAPACITY - 2 * PAGE)
        used = await busy.open([server], length=2 * PAGE)
        for number in range(6):
            if number == 3:
                assert not idle.count(Fail), "nobody else wants the room"
                wanted = newcomer.grant([server], length=CAPACITY - 2 * PAGE)
                await newcomer.send(server, Open(newcomer.sign(wanted), 0, wait_s=60))
            await busy.push(server, used, tokens(1), number)
            await busy.receive_output()
            await asyncio.sleep(2)
        fail = await idle.receive(Fail)
        assert (fail.session, fail.why) == (unused.session, FailKind.EXPIRED)
        assert "others wait for its room" in fail.detail
        assert (await newcomer.receive(Held)).session == wanted.session
        assert not busy.count(Fail)

    in_world(story)


def test_who_finds_no_room_waits_in_line_and_is_let_in_in_order() -> None:
    async def story(w: World) -> None:
        server, client = await w.server(), await w.client()
        first = await client.open([server], length=CAPACITY)
        large = client.grant([server], length=CAPACITY - PAGE)
        small = client.grant([server])
        for grant in (large, small):
            await client.send(server, Open(client.sign(grant), 0, wait_s=20))
        await asyncio.sleep(1)
        assert server.service.waiting_count == 2 and not client.count(Held)
        await client.send(server, Close(first.session))
        assert (await client.receive(Held)).session == large.session
        assert (await client.receive(Held)).session == small.session
        # Who has waited still has the whole lease to commit.
        await client.send(server, Commit(large.session, 1))
        await client.send(server, Commit(small.session, 1))
        await asyncio.sleep(60)
        assert server.service.session_count == 2

    in_world(story)


def test_waiting_ends_at_its_deadline() -> None:
    async def story(w: World) -> None:
        server, client = await w.server(), await w.client()
        await client.open([server], length=CAPACITY)
        grant = client.grant([server])
        await client.send(server, Open(client.sign(grant), 0, wait_s=5, attempt=3))
        refused = await client.receive(Refused)
        assert (refused.why, refused.attempt, refused.free_tokens) == (RefuseKind.CACHE_FULL, 3, 0)
        assert 5 <= asyncio.get_running_loop().time() <= 6
        await client.send(server, Open(client.sign(grant), 0))
        refused = await client.receive(Refused)
        assert refused.why is RefuseKind.CACHE_FULL
        assert f"0 of {CAPACITY} are free" in refused.detail
        larger = client.sign(client.grant([server], length=2 * CAPACITY))
        await client.send(server, Open(larger, 0, wait_s=5))
        assert f"its whole cache is {CAPACITY} tokens" in (await client.receive(Refused)).detail

    in_world(story)


@pytest.mark.parametrize("ending", [_close, _goodbye, _killed])
def test_who_leaves_the_line_is_forgotten(
    ending: Callable[[World, ToyServer, RawClient, Grant], Awaitable[None]],
) -> None:
    async def story(w: World) -> None:
        server, host, client = await w.server(), await w.client(), await w.client()
        await host.open([server], length=CAPACITY)
        grant = client.grant([server])
        await client.send(server, Open(client.sign(grant), 0, wait_s=600))
        await asyncio.sleep(0.1)
        assert server.service.waiting_count == 1
        await ending(w, server, client, grant)
        assert server.service.waiting_count == 0
        await host.links.close()

    in_world(story)


async def _overtaken_until_nobody_may_pass(
    server: ToyServer, waits: RawClient, passes: RawClient
) -> None:
    """`waits` wants the whole cache, and whoever comes after it has to wait as well."""
    large = waits.grant([server], length=CAPACITY)
    await waits.send(server, Open(waits.sign(large), 0, wait_s=60))
    await asyncio.sleep(0.1)
    for _ in range(MAX_OVERTAKES):
        small = await passes.open([server])
        await passes.send(server, Close(small.session))


@pytest.mark.parametrize("overtaken", [False, True])
def test_nothing_is_given_to_a_client_that_is_gone(overtaken: bool) -> None:
    """Its places in line end before its sessions do, and before each other."""

    async def story(w: World) -> None:
        server, client, other = await w.server(), await w.client(), await w.client()
        own = CAPACITY - 2 * PAGE
        await (other if overtaken else client).open([server], length=own)
        if overtaken:
            await _overtaken_until_nobody_may_pass(server, client, await w.client())
        wanted = client.grant([server], length=PAGE if overtaken else own)
        await client.send(server, Open(client.sign(wanted), 0, wait_s=60))
        await asyncio.sleep(0.1)
        assert server.service.waiting_count == 1 + overtaken
        await client.links.close()
        await asyncio.sleep(0.1)
        assert server.service.session_count == len(server.engine.rooms) == overtaken
        assert server.admission.free_tokens == CAPACITY - own * overtaken

    in_world(story)
