"""What a server refuses: bad grants, and frames that end their own session and no other."""

import asyncio

import pytest
import torch
from raw_client import RawClient
from service_world import CAPACITY, HIDDEN, PAGE, ToyServer, World, in_world, opened, tokens
from toy_engine import answers

from swarm.sessions.messages import (
    Close,
    Commit,
    Fail,
    FailKind,
    Fence,
    Hop,
    Open,
    Output,
    Refused,
    RefuseKind,
    Replay,
    RowOperation,
    SignedGrant,
    TensorSpec,
)
from swarm.wire.identity import Identity


def _refusals(
    client: RawClient, server: ToyServer, stranger: RawClient
) -> dict[RefuseKind, list[SignedGrant]]:
    good = client.grant([server])
    signed = client.sign(good)
    elsewhere = Hop(Identity.create().peer_id, 0, 2)
    return {
        RefuseKind.BAD_GRANT: [
            SignedGrant(signed.grant, bytes(64)),
            SignedGrant(signed.grant[:-1], signed.signature),
            SignedGrant(b"\xc1" * 100, bytes(64)),
            stranger.sign(stranger.grant([server])),
            client.sign(client.grant([server], hops=(elsewhere,))),
            client.sign(client.grant([server], hops=(Hop(server.peer, 2, 2),))),
        ],
        RefuseKind.WRONG_CHECKPOINT: [
            client.sign(client.grant([server], checkpoint="another-one"))
        ],
        RefuseKind.WRONG_SPAN: [
            client.sign(client.grant([server], hops=(Hop(server.peer, 0, 3),))),
        ],
        RefuseKind.CACHE_FULL: [client.sign(client.grant([server], rows=2, length=CAPACITY))],
    }


def test_bad_grants_are_refused_and_leave_nothing() -> None:
    async def story(w: World) -> None:
        server, client, stranger = await w.server(), await w.client(), await w.client()
        for why, signed_grants in _refusals(client, server, stranger).items():
            for signed in signed_grants:
                await client.send(server, Open(signed, 0, wait_s=5))
                assert (await client.receive(Refused)).why is why
        server.assert_empty()

    in_world(story)


def _hostile_steps() -> dict[str, tuple[torch.Tensor, dict[str, object]]]:
    hidden = tokens(2)
    huge = TensorSpec("hidden", "float32", (2, 1 << 20))
    return {
        "too wide": (torch.zeros(2, HIDDEN + 1), {}),
        "another dtype": (hidden.bfloat16(), {}),
        "no tensor": (hidden, {"tensors": ()}),
        "huge tensor": (hidden, {"tensors": (huge,)}),
        "another name": (hidden, {"tensors": (TensorSpec("hiddem", "float32", (2, HIDDEN)),)}),
        "giant counts": (hidden, {"counts": (1 << 20,)}),
        "too few positions": (hidden, {"position_ids": (0,)}),
        "too many rows": (hidden, {"starts": (0, 0), "counts": (1, 1)}),
        "beyond the length": (tokens(PAGE + 1), {}),
        "operation later": (hidden, {"seq": 1, "operation": RowOperation(truncate_to=(0,))}),
        "not a number": (hidden * float("nan"), {}),
        "infinite": (hidden * float("inf"), {}),
    }


@pytest.mark.parametrize("what", _hostile_steps())
def test_a_wrong_step_ends_its_session_and_no_other(what: str) -> None:
    async def story(w: World) -> None:
        [server], client, grant = await opened(w)
        other = await w.client()
        others_grant = await other.open([server])
        hidden, changes = _hostile_steps()[what]
        await client.push(server, grant, hidden, **changes)
        fail = await client.receive(Fail)
        assert (fail.session, fail.hop, fail.why) == (grant.session, 0, FailKind.REJECTED)
        assert fail.detail
        assert server.service.session_count == 1
        await other.push(server, others_grant, tokens(2))
        _, answer = await other.receive_output()
        assert answer is not None and torch.equal(answer, answers(tokens(2)))

    in_world(story)


def test_payload_bytes_that_do_not_fit_end_the_session() -> None:
    async def story(w: World) -> None:
        [server], client, grant = await opened(w)
        await client.send(server, client.step(grant, tokens(2)), tokens(3))
        assert (await client.receive(Fail)).why is FailKind.REJECTED

    in_world(story)


def test_a_strangers_frames_change_nothing() -> None:
    async def story(w: World) -> None:
        [server], client, grant = await opened(w)
        stranger = await w.client()
        session = grant.session
        hidden = tokens(2)
        await stranger.push(server, grant, hidden * float("nan"))
        for message in (
            Close(session),
            Commit(session, 1),
            Fence(session, 9),
            Fence(session, 9, stranger.sign(grant)),
            Fail(session, 0, FailKind.INTERNAL, "a lie"),
            Replay(session, 0, 0, (0,), (1,), (0,), 0),
            Output(session, 0, 0, (0,), (1,), (), 0.0, 0.0),
        ):
            await stranger.send(server, message)
        await asyncio.sleep(1)
        await client.push(server, grant, hidden)
        _, answer = await client.receive_output()
        assert answer is not None and torch.equal(answer, answers(hidden))
        assert not stranger.inbox

    in_world(story)


def test_an_unknown_session_is_answered_once() -> None:
    async def story(w: World) -> None:
        server, client = await w.server(), await w.client()
        grant = client.grant([server])
        for _ in range(3):
            await client.push(server, grant, tokens(1))
        fail = await client.receive(Fail)
        assert (fail.session, fail.why) == (grant.session, FailKind.UNKNOWN_SESSION)
        await asyncio.sleep(1)
        assert not client.count(Fail)

    in_world(story)


def test_the_blame_is_on_the_hop_that_pushed() -> None:
    async def story(w: World) -> None:
        servers, client, grant = await opened(w, 2)
        # Not what the second hop expects, but from a peer that it takes steps from.
        await client.push(servers[1], grant, tokens(1) * float("nan"))
        fail = await client.receive(Fail)
        assert (fail.hop, fail.why) == (1, FailKind.REJECTED)
        assert servers[0].peer in fail.detail
        await client.send(servers[0], Close(grant.session))

    in_world(story)


def test_an_overflow_is_the_computing_hops_own_fault() -> None:
    async def story(w: World) -> None:
        [server], client, grant = await opened(w)
        await client.push(server, grant, torch.full((2, HIDDEN), 3e38))
        assert (await client.receive(Fail)).why is FailKind.NOT_FINITE

    in_world(story)
