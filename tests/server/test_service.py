"""Sessions on a server: steps and answers, along chains of servers, until the server closes."""

import asyncio
import json
from typing import Any

import pytest
import torch
from service_world import CAPACITY, World, in_world, opened, tokens
from toy_engine import answers

from swarm.errors import LinkFullError, SessionLostError
from swarm.server.engine_jobs import EngineResult
from swarm.server.status import StatusCache
from swarm.sessions.messages import (
    Close,
    Commit,
    Fail,
    FailKind,
    Held,
    Message,
    Open,
    Refused,
    RefuseKind,
    RowOperation,
    StatusReply,
    StatusRequest,
    Step,
    Want,
)
from swarm.spans import PeerId

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
