"""What a server sends: at once where there is a link, later where one is being made."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from swarm.errors import LinkFullError, SwarmError
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Message
from swarm.spans import PeerId, SessionId
from swarm.wire.frames import MAX_UNFINISHED_BYTES
from swarm.wire.links import Links
from swarm.wire.outstanding import MESSAGE_OVERHEAD_BYTES, SESSION_SHARE

logger = logging.getLogger("swarm.server.service")

CONNECT_TIMEOUT_S = 5.0
"""How long the link to the next hop may take when a session is committed."""
LOCATE_TIMEOUT_S = 12.0
"""How long a look at the directory may take."""
MAX_WAITING_BYTES = MAX_UNFINISHED_BYTES
"""Of what waits for links that are being made, all together, where there is plenty of memory: never
more than links may hold. One session may have as large a part of it as of a link. A small message
can ask for the same megabytes to be pushed on again and again.
"""


@dataclass
class _Connecting:
    """A link that is being made, and what waits for it."""

    task: asyncio.Task[None]
    waiting: list[Callable[[], None]] = field(default_factory=list)
    waiting_bytes: Counter[bytes] = field(default_factory=Counter)
    """Of each session."""


class Outgoing:
    """Sends over `links`, and makes links to other servers before they are needed."""

    def __init__(
        self,
        links: Links,
        locate: Callable[[], Awaitable[None]] | None,
        on_unreachable: Callable[[PeerId, str], None],
        on_full: Callable[[SessionId, str], None],
    ) -> None:
        """`locate`: tells the network where servers are, before one without a link is dialled.
        `on_unreachable(peer, why)`: what was sent to the peer is lost. `on_full(session, why)`: a
        message of this session is lost, and nothing else; called in a later turn of the loop."""
        self._links = links
        self._max_waiting_bytes = min(MAX_WAITING_BYTES, links.memory_bytes)
        self._locate = locate
        self._on_unreachable = on_unreachable
        self._on_full = on_full
        self._connecting: dict[PeerId, _Connecting] = {}
        self._locating: asyncio.Future[None] | None = None

    def send(
        self,
        peer: PeerId,
        message: Message,
        buffers: Sequence[memoryview] = (),
        service_class: ServiceClass = ServiceClass.CONTROL,
        session: bytes = b"",
        client: str = "",
    ) -> None:
        """Never raises: what cannot be sent is told to `on_unreachable` or `on_full`."""
        connecting = self._connecting.get(peer)
        try:
            if connecting is not None:
                self._wait(connecting, peer, session, sum(buffer.nbytes for buffer in buffers))
                again = partial(self.send, peer, message, buffers, service_class, session, client)
                connecting.waiting.append(again)
                return
            self._links.send(peer, message, buffers, service_class, session, client)
        except LinkFullError as error:
            # The link lives: only the session that wanted more of it than there is has to end.
            logger.warning("a %s is not sent: %s", type(message).__name__, error)
            if session:
                # Later, for the session may be in the middle of what it is doing.
                loop = asyncio.get_running_loop()
                loop.call_soon(self._on_full, SessionId(session), str(error))
        except SwarmError as error:
            logger.debug("a %s for %s is lost: %s", type(message).__name__, peer, error)
            self._on_unreachable(peer, str(error))

    def _wait(self, connecting: _Connecting, peer: PeerId, session: bytes, size: int) -> None:
        """A message of so many bytes is to wait. Raises LinkFullError when too much does."""
        size += MESSAGE_OVERHEAD_BYTES
        held = connecting.waiting_bytes[session]
        total = sum(one.waiting_bytes.total() for one in self._connecting.values())
        in_all = self._max_waiting_bytes
        most = in_all // SESSION_SHARE
        # As on a link: one message of a session may wait, however long it is.
        if total + size > in_all or (held and held + size > most):
            raise LinkFullError(
                f"{held} bytes of this session and {total} in all wait for links that are being "
                f"made, {most} and {in_all} may; send less, or later",
                peer=peer,
            )
        connecting.waiting_bytes[session] += size

    def prepare(self, peer: PeerId) -> None:
        """Makes a link to `peer` unless there is one; what is sent meanwhile waits for it."""
        link = self._links.stats(peer)
        if (link is None or not link.up) and peer not in self._connecting:
            task = asyncio.get_running_loop().create_task(
                self._connect(peer), name=f"connecting to {peer}"
            )
            self._connecting[peer] = _Connecting(task)

    async def close(self) -> None:
        """Gives up the links that are being made."""
        tasks = [connecting.task for connecting in self._connecting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._locating is not None:
            self._locating.cancel()
            await asyncio.wait({self._locating})

    async def _look_round(self) -> None:
        """Calls `locate`, once for all who wait for it, and not for ever; it may fail."""
        if self._locate is None:
            return
        if self._locating is None or self._locating.done():
            self._locating = asyncio.ensure_future(self._locate())
            self._locating.add_done_callback(_log_failure)
        await asyncio.wait({self._locating}, timeout=LOCATE_TIMEOUT_S)

    async def _connect(self, peer: PeerId) -> None:
        failure: str | None = None
        try:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await self._links.connect(peer, CONNECT_TIMEOUT_S)
            except (SwarmError, TimeoutError):
                # Perhaps the directory knows where it is by now.
                await self._look_round()
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await self._links.connect(peer, CONNECT_TIMEOUT_S)
        except (SwarmError, TimeoutError) as error:
            failure = str(error) or f"no link within {CONNECT_TIMEOUT_S:g} s"
        except Exception:
            logger.exception("connecting to %s failed", peer)
            failure = "an internal fault; see the server's log"
        finally:
            waiting = self._connecting.pop(peer).waiting
        if failure is not None:
            self._on_unreachable(peer, failure)
            return
        for send in waiting:
            send()


def _log_failure(locating: asyncio.Future[None]) -> None:
    if not locating.cancelled() and (error := locating.exception()) is not None:
        logger.info("the directory was not read: %r", error)
