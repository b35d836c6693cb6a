"""Sessions on a server, from `Open` to the last page given back, also with hostile peers."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from raw_client import RawClient
from service_world import (
    CAPACITY,
    HIDDEN,
    PAGE,
    ToyServer,
    World,
    in_world,
    opened,
    session_of,
    tokens,
)
from toy_engine import answers

from swarm.errors import LinkFullError, SessionLostError
from swarm.server.engine_jobs import EngineResult
from swarm.server.reception import Quotas
from swarm.server.status import StatusCache
from swarm.sessions.hop import LEASE_S
from swarm.sessions.messages import (
    Close,
    Commit,
    Fail,
    FailKind,
    Fence,
    Grant,
    Held,
    Hop,
    Message,
    Open,
    Output,
    Refused,
    RefuseKind,
    Replay,
    RowOperation,
    SignedGrant,
    StatusReply,
    StatusRequest,
    Step,
    TensorSpec,
    Want,
)
from swarm.spans import PeerId
from swarm.wire.identity import Identity

# ---- serving


def test_a_chain_of_two_answers_prompt_and_decode() -> None:
    async def story(w: World) -> None:
        servers, client, grant = await opened(w, 2)
        hidden = tokens(6)
        expected = answers(answers(hidden))
        await client.push(servers[0], grant, hidden[:4], want=Want.LAST)
        output, last = await client.receive_output()
        assert (output.starts, output.counts) == ((3,), (1,))
        assert last is not None and torch.equal(last, expected[3:4])
        for token in (4, 5):
            await client.push(servers[0], grant, hidden[token : token + 1], token, seq=token - 3)
            output, answer = await client.receive_output()
            assert answer is not None and torch.equal(answer, expected[token : token + 1])
            assert output.compute_ms > 0
        await client.push(servers[0], grant, hidden[:0], 6, seq=3, want=Want.NONE, tensors=())
        output, answer = await client.receive_output()
        assert output.seq == 3 and answer is None
        for server in servers:
            await client.send(server, Close(grant.session))

    in_world(story)


def test_rows_of_different_lengths_are_trimmed_one_by_one() -> None:
    async def story(w: World) -> None:
        server, client = await w.server(), await w.client()
        grant = await client.open([server], rows=2)
        hidden = tokens(5)
        rows = {"starts": (0, 0), "counts": (3, 2), "position_ids": (0, 1, 2, 0, 1)}
        await client.push(server, grant, hidden, want=Want.LAST, **rows)
        output, answer = await client.receive_output()
        assert (output.starts, output.counts) == ((2, 1), (1, 1))
        expected = torch.cat([answers(hidden[:3])[2:], answers(hidden[3:])[1:]])
        assert answer is not None and torch.equal(answer, expected)

    in_world(story)


def test_a_rollback_is_computed_from_what_is_kept() -> None:
    async def story(w: World) -> None:
        [server], client, grant = await opened(w)
        hidden, other = tokens(4), tokens(2, seed=1)
        await client.push(server, grant, hidden)
        await client.receive_output()
        back = RowOperation(truncate_to=(2,))
        await client.push(server, grant, other, 2, epoch=1, seq=0, operation=back)
        _, answer = await client.receive_output()
        expected = answers(torch.cat([hidden[:2], other]))[2:]
        assert answer is not None and torch.equal(answer, expected)

    in_world(story)


def test_activations_travel_in_the_dtype_of_the_grant() -> None:
    async def story(w: World) -> None:
        server, client = await w.server(), await w.client()
        grant = await client.open([server], dtype="bfloat16")
        await client.push(server, grant, tokens(2).bfloat16())
        output, answer = await client.receive_output()
        assert answer is not None and answer.dtype is torch.bfloat16
        assert output.tensors[0].dtype == "bfloat16"

    in_world(story)


def test_the_status_is_told_to_whoever_asks() -> None:
    async def story(w: World) -> None:
        [server], client, _ = await opened(w)
        await client.send(server, StatusRequest(7))
        reply = await client.receive(StatusReply)
        assert reply.request == 7
        assert json.loads(reply.status) == {"blocks": "0:2", "sessions": 1}

    in_world(story)


def test_a_status_is_made_anew_twice_a_second_at_most() -> None:
    made: list[int] = []

    def fields() -> dict[str, int]:
        made.append(1)
        return {"count": len(made)}

    cache = StatusCache(fields)
    told = [json.loads(cache.read(now, 7))["count"] for now in (0.0, 0.1, 0.4, 0.6, 0.7, 1.2)]
    assert told == [1, 1, 1, 2, 2, 3]
    assert json.loads(cache.read(1.3, 8))["count"] == 4, "a session has come"


def test_a_result_of_a_freed_session_does_not_reach_its_successor() -> None:
    async def story(w: World) -> None:
        [server], client, grant = await opened(w)
        await client.push(server, grant, tokens(2))
        await client.receive_output()
        [job] = server.engine.jobs
        await client.send(server, Close(grant.session))
        await asyncio.sleep(1)
        again = await client.open([server], session=grant.session)
        server.service.on_results([EngineResult(job, None, SessionLostError("gone"), 1.0, 1.0)])
        await client.push(server, again, tokens(3))
        _, answer = await client.receive_output()
        assert answer is not None and torch.equal(answer, answers(tokens(3)))

    in_world(story)


# ---- the books


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


# ---- the line


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


def test_asking_twice_gives_one_room() -> None:
    async def story(w: World) -> None:
        server, client = await w.server(), await w.client()
        signed = client.sign(client.grant([server]))
        for attempt in (1, 2):
            await client.send(server, Open(signed, 0, attempt=attempt))
            assert (await client.receive(Held)).attempt == attempt
        assert server.admission.free_tokens == CAPACITY - PAGE

    in_world(story)


# ---- who is not let in


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


# ---- what ends one session


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


# ---- other servers


def test_a_next_hop_that_is_gone_is_told_to_the_client() -> None:
    async def story(w: World) -> None:
        first, second, client = await w.server("0:2"), await w.server("2:4"), await w.client()
        await w.vanish(second)
        grant = client.grant([first, second])
        await client.send(first, Open(client.sign(grant), 0))
        await client.receive(Held)
        await client.send(first, Commit(grant.session, 1))
        await client.push(first, grant, tokens(1))
        fail = await client.receive(Fail)
        assert (fail.hop, fail.why) == (0, FailKind.PEER_LOST)
        assert second.peer in fail.detail
        # What is held stays, for a repair.
        assert first.service.session_count == 1
        await client.send(first, Close(grant.session))

    in_world(story)


def test_a_step_that_is_ready_before_the_link_waits_for_it() -> None:
    async def story(w: World) -> None:
        first, second, client = await w.server("0:2"), await w.server("2:4"), await w.client()
        w.hub.set_path(first.peer, second.peer, delay_s=0.5)
        grant = await client.open([first, second])
        await client.push(first, grant, tokens(3))
        _, answer = await client.receive_output()
        assert answer is not None and torch.equal(answer, answers(answers(tokens(3))))

    in_world(story)


def test_a_next_hop_that_dies_later_is_told_as_well() -> None:
    async def story(w: World) -> None:
        servers, client, grant = await opened(w, 2)
        await client.push(servers[0], grant, tokens(1))
        await client.receive_output()
        await w.vanish(servers[1])
        fail = await client.receive(Fail)
        assert (fail.hop, fail.why) == (0, FailKind.PEER_LOST)
        await client.send(servers[0], Close(grant.session))

    in_world(story)


def test_a_full_link_ends_only_the_session_that_found_it_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(w: World) -> None:
        servers, client, grant = await opened(w, 2)
        other = await w.client()
        others = await other.open(servers)
        links = servers[0].links
        send = links.send

        def full(peer: PeerId, message: Message, *rest: Any) -> None:
            if isinstance(message, Step) and message.session == grant.session:
                raise LinkFullError("the link is full", peer=peer)
            send(peer, message, *rest)

        monkeypatch.setattr(links, "send", full)
        await client.push(servers[0], grant, tokens(1))
        fail = await client.receive(Fail)
        assert (fail.hop, fail.why) == (0, FailKind.PEER_LOST)
        assert "the link is full" in fail.detail
        await other.push(servers[0], others, tokens(1))
        await other.receive_output()
        await client.send(servers[1], Close(grant.session))
        for server in servers:
            await other.send(server, Close(others.session))

    in_world(story)


# ---- the end


def test_a_draining_server_finishes_what_it_has() -> None:
    async def story(w: World) -> None:
        [server], client, grant = await opened(w)
        waiting = client.grant([server], length=CAPACITY)
        await client.send(server, Open(client.sign(waiting), 0, wait_s=100))
        await asyncio.sleep(0.1)
        server.service.refuse_new_sessions()
        assert (await client.receive(Refused)).why is RefuseKind.DRAINING
        await client.send(server, Open(client.sign(client.grant([server])), 0))
        assert (await client.receive(Refused)).why is RefuseKind.DRAINING
        await client.push(server, grant, tokens(1))
        await client.receive_output()
        idle = asyncio.ensure_future(server.service.hand_over())
        assert (await client.receive(Fail)).why is FailKind.DRAINING
        await client.push(server, grant, tokens(1), 1, seq=1)
        await client.receive_output()
        await asyncio.sleep(1)
        assert not idle.done()
        await client.send(server, Close(grant.session))
        await idle

    in_world(story)


def test_closing_tells_the_clients() -> None:
    async def story(w: World) -> None:
        [server], client, grant = await opened(w)
        await server.service.close()
        fail = await client.receive(Fail)
        assert (fail.session, fail.why) == (grant.session, FailKind.SHUTTING_DOWN)
        server.assert_empty()

    in_world(story)
