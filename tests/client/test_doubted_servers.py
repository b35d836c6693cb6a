"""Servers that announce other contents of their blocks than others do are taken last."""

import asyncio
import logging

import pytest
from fake_swarm import FakeSwarm, Server, open_on
from test_planned_moves import Move

from swarm.client import probing
from swarm.client.probing import MAX_PROBED, silent_servers
from swarm.errors import CacheFullError, MissingBlocksError
from swarm.spans import Span

RIGHT = ("0:2", "0:2", "2:4")


def right_servers(answer="hold"):
    """They agree about blocks 0 and 1."""
    return [Server(span, answer, digests="ab" if span == "0:2" else "cd") for span in RIGHT]


def damaged_server(**changes):
    """It would be the shortest route by far."""
    return Server("0:4", digests="axcd", **changes)


def used(session):
    return {hop.peer for hop in session.route}


def test_records_without_servers_hide_nobody():
    honest = [Server("0:2", digests="ab"), Server("2:4", digests="cd")]
    made_up = [Server("0:4", "down", digests="wxyz") for _ in range(len(honest) + 1)]
    swarm = FakeSwarm(*made_up, *honest)
    assert used(open_on(swarm)) == {server.peer for server in honest}
    assert swarm.lookups == 1, "nobody was tried in vain"


def test_an_outvoted_server_is_passed_over_and_named_once(caplog):
    damaged = damaged_server()
    swarm = FakeSwarm(damaged, *right_servers())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert damaged.peer not in used(open_on(swarm))
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"{damaged.peer} (block 1)" in told


def test_it_is_taken_with_a_warning_where_the_others_refuse(caplog):
    damaged = damaged_server()
    with caplog.at_level(logging.WARNING):
        session = open_on(FakeSwarm(damaged, *right_servers("draining")))
    assert used(session) == {damaged.peer}
    assert f"over {damaged.peer} (blocks 0:4)" in caplog.text


def test_others_that_are_full_are_waited_for_instead():
    damaged = damaged_server()
    with pytest.raises(CacheFullError):
        open_on(FakeSwarm(damaged, *right_servers("cache_full")))
    assert damaged.messages == []


def damaged_takes_over(answer):
    """Whether the damaged server, by far the nearest, replaces one that a session has lost."""

    async def run():
        right = [Server("0:4", answer, digests="abcd") for _ in range(3)]
        move = Move(right[0], damaged, *right[1:])
        move.urgent = True
        move.swarm.rtts = {server.peer: 0.3 for server in right} | {damaged.peer: 0.001}
        _, task = move.begin()
        grant, _ = await task
        return grant.hops[0].peer

    damaged = damaged_server()
    return asyncio.run(run()) == damaged.peer


def test_a_repair_goes_elsewhere_if_it_can(caplog):
    with caplog.at_level(logging.WARNING):
        assert not damaged_takes_over("hold")
        assert "answers may be wrong" not in caplog.text
        assert damaged_takes_over("draining")
        assert "answers may be wrong" in caplog.text


def test_a_planned_move_never_goes_to_it():
    async def run():
        damaged = damaged_server()
        right = [Server("0:4", digests="abcd"), Server("0:4", "draining", digests="abcd")]
        move = Move(right[0], damaged, right[1], lasts_s=0.5)
        move.swarm.rtts = {server.peer: 0.01 for server in (*right, damaged)}
        _, task = move.begin()
        with pytest.raises(MissingBlocksError):
            await task
        assert damaged.messages == []

    asyncio.run(run())


# ---- who is asked

SPANS = ("0:1", "1:2", "2:3", "3:4")


def test_servers_that_are_only_announced_are_not_tried_one_by_one(monkeypatch):
    """The shortest route by far is over any of them, and connecting to one may take long."""
    monkeypatch.setattr(probing, "SPARE_S", 0.0)
    monkeypatch.setattr(probing, "TIMEOUT_S", 0.05)
    made_up = [Server("0:4", "frozen") for _ in range(60)]
    honest = [Server(span) for span in SPANS]
    swarm = FakeSwarm(*made_up, *honest)
    assert used(open_on(swarm)) == {server.peer for server in honest}
    assert swarm.lookups <= 2, "one was tried, and then everybody was asked who is there"


def probe(swarm):
    """The servers that did not answer, and those that were asked."""
    asked = []
    connect = swarm.connect

    async def watched(record, timeout_s):
        asked.append(record.peer)
        await connect(record, timeout_s)

    swarm.connect = watched
    records = swarm.known_servers("")
    silent = asyncio.run(silent_servers(swarm, records, [Span(0, 4)]))
    return silent, asked


def test_a_repair_does_not_try_them_one_by_one_either(monkeypatch):
    monkeypatch.setattr(probing, "SPARE_S", 0.0)
    monkeypatch.setattr(probing, "TIMEOUT_S", 0.05)
    lost, honest = Server("0:4", "frozen"), [Server(span) for span in SPANS]

    async def run():
        move = Move(lost, *[Server("0:4", "frozen") for _ in range(25)], *honest)
        move.urgent = True
        _, task = move.begin()
        grant, _ = await task
        assert {hop.peer for hop in grant.hops} == {server.peer for server in honest}
        assert move.swarm.lookups <= 2

    asyncio.run(run())


def test_half_of_those_that_are_asked_are_of_blocks_in_dispute():
    both = [Server("0:1", digests="x"), *(Server("0:1", digests="a") for _ in range(7))]
    others = [Server("1:4", digests="bcd") for _ in range(60)]
    _, asked = probe(FakeSwarm(*others, *both))
    assert len(asked) == MAX_PROBED
    assert len(set(asked) & {server.peer for server in both}) >= MAX_PROBED // 2


def test_the_answer_of_an_outvoted_server_does_not_end_the_waiting(monkeypatch):
    """Else the first that answers would be the only one that counts."""
    monkeypatch.setattr(probing, "SPARE_S", 0.0)
    monkeypatch.setattr(probing, "TIMEOUT_S", 60.0)
    damaged, right = damaged_server(), right_servers()
    swarm = FakeSwarm(damaged, *right)
    connect = swarm.connect

    async def slower(record, timeout_s):
        if record.peer != damaged.peer:
            await asyncio.sleep(0.05)
        await connect(record, timeout_s)

    swarm.connect = slower
    _, asked = probe(swarm)
    assert len(asked) == 4
    assert {server.peer for server in right} & swarm.rtts.keys()
