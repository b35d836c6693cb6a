"""Clients that spend a server's time or memory on nothing."""

import asyncio

import pytest
from service_world import World, in_world, opened, tokens

from swarm.sessions.grants import GRANT_CONTEXT
from swarm.sessions.messages import (
    MAX_STEP_TOKENS,
    Fail,
    FailKind,
    Fence,
    Open,
    Output,
    Refused,
    RefuseKind,
    Replay,
    SignedGrant,
    StatusReply,
    StatusRequest,
    Want,
    encode,
)


@pytest.mark.parametrize("what", ["unknown session", "old epoch", "beyond what is held"])
def test_a_flood_of_steps_that_lead_nowhere_is_slowed_down(what: str) -> None:
    """1,000 at once, then 200 a second; the steps of another client are answered as ever."""

    async def story(w: World) -> None:
        [server], client, grant = await opened(w)
        flooder = await w.client()
        own = await flooder.open([server])
        if what == "old epoch":
            await flooder.send(server, Fence(own.session, 5))
        changes = {"seq": 3} if what == "beyond what is held" else {}
        flooded = client.grant([server]) if what == "unknown session" else own
        for _ in range(2000):
            await flooder.push(server, flooded, tokens(1), **changes)
        # In the order of that session.
        flooder.links.send(server.peer, StatusRequest(9), session=flooded.session)
        await asyncio.sleep(3)
        assert not flooder.count(StatusReply)
        await client.push(server, grant, tokens(2))
        await client.receive_output()
        assert (await flooder.receive(StatusReply)).request == 9

    in_world(story)


def test_a_grant_whose_names_are_no_text_is_refused_like_any_other() -> None:
    async def story(w: World) -> None:
        [server], client, grant = await opened(w)
        junk = encode(client.grant([server])).replace(server.peer.encode(), b"\xff" * 52)
        signed = SignedGrant(junk, client.identity.sign(GRANT_CONTEXT + junk))
        await client.send(server, Open(signed, 0))
        refused = await client.receive(Refused)
        assert (refused.session, refused.why) == (bytes(16), RefuseKind.BAD_GRANT)
        await client.send(server, Fence(grant.session, 1, signed))
        assert (await client.receive(Fail)).why is FailKind.REJECTED

    in_world(story)


def test_a_replay_of_more_than_a_step_may_have_ends_the_session() -> None:
    async def story(w: World) -> None:
        length = 2 * MAX_STEP_TOKENS
        servers = [await w.server("0:2", 2 * length), await w.server("2:4", 2 * length)]
        client = await w.client()
        grant = await client.open(servers, length=length)
        for number in range(2):
            start = number * MAX_STEP_TOKENS
            step = {"seq": number, "starts": (start,), "want": Want.NONE}
            await client.push(servers[0], grant, tokens(MAX_STEP_TOKENS), start, **step)
            await client.receive(Output)
        counts = (MAX_STEP_TOKENS + 1,)
        await client.send(servers[0], Replay(grant.session, 0, 0, (0,), counts, (0,), 1))
        fail = await client.receive(Fail)
        assert (fail.why, fail.hop) == (FailKind.REJECTED, 0)

    in_world(story)
