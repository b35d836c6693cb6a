"""A server that chose its blocks itself looks now and then whether others need it more."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from swarm.errors import SwarmError
from swarm.routing.moving import Action, Decision, Mover, MoveRules
from swarm.routing.view import ServerView, SwarmView
from swarm.spans import Span

logger = logging.getLogger("swarm.server")


def rules_for(check_s: float) -> MoveRules:
    """The rules at this pace; shorter ones where it is quick."""
    usual = MoveRules()
    return MoveRules(
        check_s=check_s,
        settle_s=min(usual.settle_s, check_s / 3),
        urgent_s=min(usual.urgent_s, check_s / 3),
    )


class Movable(Protocol):
    """What is moved: a server's `Residence`."""

    reload_s: float

    async def prepare(self, span: Span) -> bool:
        """Has what these blocks need here, while the present ones are served; False: it cannot."""

    async def move(self, span: Span, reason: str) -> bool:
        """Leaves the present blocks, and is online on these; False: it cannot, and serves none."""

    async def settle(self, span: Span) -> None:
        """Serves the blocks that it had. Raises what loading raises."""


class Mobility:
    """Carries out what a `Mover` decides; `intent` belongs into the server's record."""

    def __init__(
        self,
        mover: Mover,
        movable: Movable,
        *,
        read: Callable[[], Awaitable[SwarmView]],
        mine: Callable[[], ServerView],
        announce: Callable[[], Awaitable[bool]],
    ) -> None:
        """`read`: the swarm without servers that are dead; `announce`: our record as it is now,
        True if others took it."""
        self.intent: Span | None = None
        self._mover = mover
        self._movable = movable
        self._read = read
        self._mine = mine
        self._announce = announce
        self._alarm = asyncio.Event()

    def alarm(self) -> None:
        """Blocks have lost their last server."""
        self._alarm.set()

    def may_move(self, now: float) -> bool:
        """Whether others may count on it; not soon after a move that failed."""
        return self._mover.may_move(now)

    async def watch(self) -> None:
        """Looks until it is cancelled. Raises what loading the old blocks again raises."""
        loop = asyncio.get_running_loop()
        while True:
            if self._alarm.is_set():
                self._alarm.clear()
                self._mover.alarm(loop.time())
            left_s = self._mover.next_look - loop.time()
            if left_s > 0:
                try:
                    async with asyncio.timeout(left_s):
                        await self._alarm.wait()
                except TimeoutError:
                    pass
                continue
            await self._look(loop)

    async def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            view, mine = await self._read(), self._mine()
            decision = self._mover.look(view, mine, loop.time(), reload_s=self._movable.reload_s)
            if decision.action is not Action.GO:
                await self._tell(decision, loop)
                return
        except SwarmError as error:
            logger.info("whether others need this server more was not found out: %s", error)
            await self._stay(loop)
            return
        except Exception:
            # It only looks: a look that fails ends no server.
            logger.exception("looking whether others need this server more failed")
            await self._stay(loop)
            return
        assert decision.span is not None
        moved = await self._movable.move(decision.span, decision.reason)
        self.intent = None
        if moved:
            self._mover.arrived(loop.time())
        else:
            self._mover.failed(loop.time())
            await self._movable.settle(mine.span)
        await self._announce()

    async def _tell(self, decision: Decision, loop: asyncio.AbstractEventLoop) -> None:
        match decision.action:
            case Action.ANNOUNCE:
                assert decision.span is not None
                logger.info("blocks %s may need this server: %s", decision.span, decision.reason)
                self.intent = decision.span
                if not await self._announce():
                    await self._stay(loop)
                elif not await self._movable.prepare(decision.span):
                    self.intent = None
                    self._mover.failed(loop.time())
                    await self._announce()
            case Action.WITHDRAW:
                logger.info("this server stays: %s", decision.reason)
                self.intent = None
                await self._announce()

    async def _stay(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nobody could be asked, or told: no move without that."""
        self._mover.gave_up(loop.time())
        if self.intent is not None:
            self.intent = None
            await self._announce()
