"""A session leaves hops that serve it still: between two steps, and only where there is room."""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from fake_swarm import TARGET, FakeSwarm, Server

from swarm.client.mending import Mending
from swarm.errors import MissingBlocksError
from swarm.sessions.messages import Grant, Hop, Open

SESSION = b"s" * 16
Moved: TypeAlias = asyncio.Task[tuple[Grant, object]]


class Move:
    """A session on the first of `servers`, all of which serve all blocks; the first leaves."""

    def __init__(self, *servers: Server, lasts_s: float = 5.0) -> None:
        self.swarm = FakeSwarm(*servers)
        self.urgent = False
        self.decodes = False
        self._leaving = servers[0]
        self._lasts_s = lasts_s

    def begin(self) -> tuple[Mending, Moved]:
        peer = self._leaving.peer
        grant = Grant(
            session=SESSION,
            route=0,
            checkpoint=TARGET.checkpoint,
            hops=(Hop(peer, 0, 4),),
            client=self.swarm.identity.peer_id,
            rows=1,
            length=10,
            dtype="float32",
            lifetime_s=100.0,
        )
        mending = Mending(
            self.swarm,
            TARGET,
            self.swarm.router(TARGET),
            grant,
            lost=lambda: {peer},
            barred=lambda: set() if self.urgent else {peer},
            urgent=lambda: self.urgent,
            decodes=lambda: self.decodes,
            ends=self.swarm.time + self._lasts_s,
        )
        self.swarm.attach(SESSION, mending)
        return mending, asyncio.ensure_future(mending.run())


def waits(server: Server) -> list[float]:
    return [message.wait_s for message in server.messages if isinstance(message, Open)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def ready_in_mid_step(other: Server) -> tuple[Move, Mending, Moved]:
    """`other` is ready to take a session over, which waits for the answer of a step."""
    move = Move(Server("0:4"), other)
    move.decodes = True
    mending, task = move.begin()
    await until(lambda: other.kinds == ["Open", "Commit"])
    return move, mending, task


def test_the_step_that_is_under_way_is_answered_first() -> None:
    async def run() -> None:
        other = Server("0:4")
        _, mending, task = await ready_in_mid_step(other)
        await asyncio.sleep(0.05)
        assert not task.done()
        mending.step_ended()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert task.done(), "the next step would be sent over the old route"
        assert task.result()[0].hops[0].peer == other.peer

    asyncio.run(run())


def test_a_hop_that_is_lost_meanwhile_is_not_waited_for() -> None:
    async def run() -> None:
        other = Server("0:4")
        move, mending, task = await ready_in_mid_step(other)
        move.urgent = True
        mending.tick(move.swarm.time)
        assert (await asyncio.wait_for(task, 0.5))[0].hops[0].peer == other.peer

    asyncio.run(run())


def test_a_move_that_ends_while_it_waits_leaves_nothing_behind() -> None:
    async def run() -> None:
        other = Server("0:4")
        _, _, task = await ready_in_mid_step(other)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert other.kinds[-1] == "Close"

    asyncio.run(run())


def test_a_planned_move_stands_in_no_line_and_asks_again() -> None:
    """Two sessions that each waited for the other's room would wait in vain."""

    async def run() -> None:
        full = Server("0:4", "cache_full")
        move = Move(Server("0:4"), full)
        _, task = move.begin()
        await until(lambda: len(waits(full)) >= 4)
        assert set(waits(full)) == {0.0}
        full.answer = "hold"
        assert (await asyncio.wait_for(task, 3))[0].hops[0].peer == full.peer

    asyncio.run(run())


def test_without_room_the_session_stays() -> None:
    async def run() -> None:
        full = Server("0:4", "cache_full")
        move = Move(Server("0:4"), full, lasts_s=0.5)
        _, task = move.begin()
        (error,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(error, MissingBlocksError)
        assert set(waits(full)) == {0.0}

    asyncio.run(run())


def test_a_lost_hop_is_worth_standing_in_line() -> None:
    async def run() -> None:
        full = Server("0:4", "cache_full")
        move = Move(Server("0:4", "down"), full)
        move.urgent = True
        _, task = move.begin()
        await until(lambda: any(wait > 0 for wait in waits(full)))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_the_only_server_is_tried_again_and_again_until_it_is_back() -> None:
    """Also while it is left out because it failed."""

    async def run() -> None:
        only = Server("0:4", "down")
        move = Move(only)
        move.urgent = True
        move.swarm.troubles.failed(only.peer, move.swarm.time + 60.0)
        _, task = move.begin()
        lookups = move.swarm.lookups
        await until(lambda: move.swarm.lookups > lookups + 2)
        only.answer = "hold"
        assert (await asyncio.wait_for(task, 3))[0].hops[0].peer == only.peer

    asyncio.run(run())


def test_all_that_cannot_be_reached_are_left_out_at_once() -> None:
    """Else each costs a try of its own, of two seconds."""

    async def run() -> None:
        gone = [Server("0:2", "down"), Server("2:4", "down")]
        move = Move(Server("0:4", "down"), *gone)
        move.urgent = True
        _, task = move.begin()
        out = move.swarm.troubles.left_out
        await until(lambda: {one.peer for one in gone} <= out(move.swarm.time))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
