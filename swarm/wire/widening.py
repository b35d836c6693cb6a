"""Opening lanes for the links that need them, and taking those that peers open."""

import asyncio
import logging
from collections.abc import Mapping

from swarm.errors import FramingError, PeerError, UnreachablePeerError
from swarm.scheduling.client_groups import ClientGroups
from swarm.spans import PeerId
from swarm.wire.connection import Connection
from swarm.wire.frames import Frame, LaneHello, pack_lane, unpack_lane
from swarm.wire.lanes import LANES, Lanes
from swarm.wire.link import Link
from swarm.wire.network import Network
from swarm.wire.places import Places

logger = logging.getLogger(__name__)

MAX_WIDE_LINKS = 64
"""So many may have lanes, which are 15 open files each."""
AT_ONCE = 3
"""Lanes are opened so many at a time: a peer takes no more streams that have not greeted."""
TIMEOUT_S = 15.0
"""For all lanes of a link; without them it stays as it is."""


class Widening:
    """Of all links of a process."""

    def __init__(
        self, network: Network, groups: ClientGroups, links: Mapping[PeerId, Link]
    ) -> None:
        """`links`: those that there are, at any time."""
        self._network = network
        self._groups = groups
        self._links = links
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """What is being opened is given up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _has_room(self, connection: Connection) -> bool:
        """Whether its link may get lanes: as of the links, no group of peers takes all."""
        taken: Places[PeerId] = Places(MAX_WIDE_LINKS)
        for link in self._links.values():
            first = link.connection
            if first is not None and first.lanes is not None:
                taken.take(first.peer, self._groups.group_at(first.peer, first.address))
        return taken.has_room(self._groups.group_at(connection.peer, connection.address))

    # ---- as the one who dialled the link's stream

    def widen(self, link: Link, first: Connection) -> None:
        """The link wants lanes beside `first`."""
        if link.connection is not first or first.lanes is not None or not self._has_room(first):
            return
        task = asyncio.get_running_loop().create_task(self._widen(link, Lanes(first, link)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _widen(self, link: Link, lanes: Lanes) -> None:
        """Returns when the link is spread over its lanes, or goes on without any."""
        peer = lanes.first.peer
        try:
            async with asyncio.timeout(TIMEOUT_S):
                for begin in range(1, LANES, AT_ONCE):
                    async with asyncio.TaskGroup() as group:
                        for lane in range(begin, min(begin + AT_ONCE, LANES)):
                            group.create_task(self._open(link, lanes, lane))
        except* (TimeoutError, PeerError) as errors:
            logger.debug("the link to %s stays with one stream: %r", peer, errors.exceptions)
        except* Exception:
            logger.exception("lanes to %s could not be opened; its link stays as it is", peer)
        finally:
            if lanes.complete and lanes.first.lanes is lanes:
                lanes.spread()
            else:
                lanes.abandon()

    async def _open(self, link: Link, lanes: Lanes, lane: int) -> None:
        stream = await self._network.dial(lanes.first.peer, TIMEOUT_S)
        loop = asyncio.get_running_loop()
        hello = LaneHello(link.incarnation, lanes.first.number, lane)
        greeted: asyncio.Future[None] = loop.create_future()

        def on_hello(connection: Connection, frame: Frame) -> None:
            if unpack_lane(frame) != hello._replace(incarnation=link.peer_incarnation):
                raise FramingError(f"the answer of another lane than {lane}")
            lanes.add(lane, connection)
            if not greeted.done():
                greeted.set_result(None)

        def on_end(connection: Connection, error: PeerError | str) -> None:
            if not isinstance(error, PeerError):
                error = UnreachablePeerError(f"lane {lane}: {error}", peer=connection.peer)
            if not greeted.done():
                greeted.set_exception(error)

        connection = Connection(stream, loop, dialled=True, on_hello=on_hello, on_end=on_end)
        connection.start()
        connection.write(pack_lane(hello))
        try:
            await greeted
        finally:
            if connection.link is None:
                connection.close()

    # ---- as the other one

    def lane_received(self, connection: Connection, frame: Frame) -> None:
        """A peer opens a lane beside a stream that it dialled. Raises FramingError."""
        hello = unpack_lane(frame)
        link = self._links.get(connection.peer)
        first = link.connection if link is not None else None
        if (
            link is None
            or first is None
            or first.dialled
            or (hello.incarnation, hello.stream) != (link.peer_incarnation, first.number)
            or (first.lanes is None and not self._has_room(connection))
        ):
            connection.close()  # that stream is gone, or there is no room: it does without
            return
        lanes = first.lanes or Lanes(first, link)
        connection.write(pack_lane(hello._replace(incarnation=link.incarnation)))
        lanes.add(hello.lane, connection)
