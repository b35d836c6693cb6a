"""Carrying out one `Opening`: its grant signed, its messages out, the answers in."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from swarm.client.hop_watch import HopWatch
from swarm.errors import PeerError, SwarmError
from swarm.sessions.events import (
    Event,
    Forward,
    Instruction,
    Opened,
    PeerLost,
    Raise,
    Received,
    Tick,
)
from swarm.sessions.grants import GRANT_CONTEXT
from swarm.sessions.messages import Grant, Message, SignedGrant, encode
from swarm.sessions.opening import Opening
from swarm.spans import PeerId

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm

logger = logging.getLogger(__name__)


class OpeningRun:
    """Drives one `Opening`; a `Listener`. Whoever runs it lets it hear what its session hears.

    A hop from which nothing comes, not even the answer to a ping, counts as lost: its link may be
    restored, but another server is sooner.
    """

    def __init__(
        self,
        swarm: "Swarm",
        grant: Grant,
        *,
        deadline_s: float,
        hops: tuple[int, ...] | None = None,
        may_wait: bool,
        patient: bool = False,
        on_opened: Callable[[], None] = lambda: None,
    ) -> None:
        """`hops` and `may_wait` as in `Opening`. `patient`: silent hops are waited for, because
        there are no others. `on_opened` is called at once, so that no message falls between
        opening and session."""
        packed = encode(grant)
        self.signed = SignedGrant(packed, swarm.identity.sign(GRANT_CONTEXT + packed))
        self._swarm = swarm
        self._opening = Opening(
            grant, self.signed, deadline_s=deadline_s, hops=hops, may_wait=may_wait
        )
        self._watch = None if patient else HopWatch()
        self._on_opened = on_opened
        self._result: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Returns when every hop holds and knows that it is to keep it; raises as `Opening` says.

        Cancelled, it releases what is held.
        """
        try:
            self._apply(self._opening.start(self._swarm.time))
            await asyncio.wait([self._result])
            self._result.result()
        except BaseException:  # also cancelled: what is held is released
            self._apply(self._opening.cancel())
            raise

    def received(self, sender: PeerId, message: Message, payload: memoryview) -> None:
        self._handle(Received(sender, message))

    def peer_lost(self, peer: PeerId, reason: str) -> None:
        if peer == self._swarm.identity.peer_id:
            self._fail(SwarmError(reason))
        else:
            self._handle(PeerLost(peer, reason))

    def tick(self, now: float) -> None:
        self._handle(Tick())
        if self._watch is None:
            return
        due = {PeerId(peer) for peer in self._opening.due}
        self._watch.look(due, self._swarm.hears, now)
        for peer in due & self._watch.doubted:
            self._handle(PeerLost(peer, "nothing comes from it"))

    def _handle(self, event: Event) -> None:
        try:
            self._apply(self._opening.handle(event, self._swarm.time))
        except Exception as error:  # as in `_hand_over`
            self._fail(error)

    def _apply(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Forward(to=peer, message=message):
                    self._send(peer, message)
                case Opened() if not self._result.done():
                    self._hand_over()
                case Raise(error):
                    self._fail(error)
                case _:
                    logger.error("an instruction that no opening knows: %r", instruction)

    def _hand_over(self) -> None:
        try:
            self._on_opened()
        except Exception as error:  # told to who waits: nothing would end the waiting any more
            self._result.set_exception(error)
        else:
            self._result.set_result(None)

    def _send(self, peer: PeerId, message: Message) -> None:
        try:
            self._swarm.send(peer, message, session=self._opening.grant.session)
        except PeerError as error:
            self._handle(PeerLost(peer, str(error)))

    def _fail(self, error: Exception) -> None:
        if not self._result.done():
            self._result.set_exception(error)
