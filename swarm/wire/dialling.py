"""Bringing one link up: dial, wait for the hello, try again until the deadline."""

import asyncio
import logging
from collections.abc import Callable

from swarm.errors import (
    FramingError,
    PeerError,
    PeerTimeoutError,
    ProtocolVersionError,
    UnreachablePeerError,
)
from swarm.wire.connection import Connection
from swarm.wire.frames import Frame
from swarm.wire.link import Link
from swarm.wire.network import Network

logger = logging.getLogger(__name__)

ATTEMPT_S = 5.0
"""How long one dial may take before the next is tried."""
BACKOFF_S = (0.0, 0.1, 0.25, 0.5, 1.0)


class Dialling:
    """One link that is not up, and the attempts to change that.

    It also lives on beside a link that is up while a stream of ours, which outranks the one that
    was accepted, still waits for its hello: the peer may have chosen it already.
    """

    def __init__(
        self,
        link: Link,
        network: Network,
        hello_timeout_s: float,
        *,
        on_hello: Callable[[Connection, Frame], None],
        on_failure: Callable[[Link, PeerError], None],
        on_end: Callable[["Dialling"], None],
    ) -> None:
        """`on_hello`: for each connection; `on_failure`: the link cannot be brought up in time;
        `on_end`: the link is up, and no stream of ours is waited for any more."""
        self.connection: Connection | None = None
        """Ours, without the peer's hello so far."""
        self.link = link
        self._network = network
        self._hello_timeout_s = hello_timeout_s
        self._on_hello = on_hello
        self._on_failure = on_failure
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time()
        self._over = False
        self._grace: asyncio.TimerHandle | None = None
        self._hello: asyncio.Future[None] | None = None
        """Done when the hello on `connection` has come; failed if it does not."""
        self._task: asyncio.Task[None] | None = None

    def extend(self, timeout_s: float) -> None:
        """Do not give up for so long."""
        self._deadline = max(self._deadline, self._loop.time() + timeout_s)

    def start_grace(self, grace_s: float, error: PeerError) -> None:
        """At the end of this time the link is lost, whatever is being tried."""
        self.end_grace()
        self.extend(grace_s)
        self._grace = self._loop.call_later(grace_s, self._on_failure, self.link, error)

    def end_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def dial(self, delay_s: float = 0.0) -> asyncio.Task[None] | None:
        """Begins to dial; the new task, or None if it is being dialled already."""
        if self._task is not None and not self._task.done():
            return None
        self._task = self._loop.create_task(self._run(delay_s))
        return self._task

    def cancel(self) -> None:
        self.end_grace()
        if self._task is not None:
            self._task.cancel()
        if self.connection is not None and self.connection.link is None:
            self.connection.close()

    def succeed(self) -> None:
        """The hello on our connection has come, and the link uses it."""
        self._over = True
        if self.connection is not None:
            self.settle(self.connection, None)

    def settle(self, connection: Connection, error: PeerError | None) -> None:
        """The hello on `connection` has come, or will not come; other connections are ignored."""
        if connection is not self.connection or self._hello is None or self._hello.done():
            return
        if error is None:
            self._hello.set_result(None)
        else:
            self._hello.set_exception(error)

    async def _run(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        attempt = 0
        while self.link.connection is None and not self._over:
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            attempt += 1
            left_s = self._deadline - self._loop.time()
            try:
                if left_s <= 0:
                    if self._grace is None:  # else its end says that the link is lost
                        self._on_failure(self.link, self._no_hello())
                    return
                await self._attempt(left_s)
            except PeerError as error:
                # A peer that was never met and cannot be reached is not there; others come back.
                absent = not self.link.met and isinstance(error, UnreachablePeerError)
                if absent or isinstance(error, ProtocolVersionError | FramingError):
                    self._on_failure(self.link, error)
                    return
                logger.debug("dialling %s again: %s", self.link.peer, error)
            except Exception:
                logger.exception("dialling %s failed", self.link.peer)
                failure = UnreachablePeerError(
                    f"{self.link.peer} could not be dialled; the log says why", peer=self.link.peer
                )
                self._on_failure(self.link, failure)
                return
        self._on_end(self)

    async def _attempt(self, left_s: float) -> None:
        """Returns when the hellos are exchanged."""
        stream = await self._network.dial(self.link.peer, min(left_s, ATTEMPT_S))
        self._hello = self._loop.create_future()
        connection = self.connection = Connection(
            stream, self._loop, dialled=True, on_hello=self._on_hello, on_end=self._stream_ended
        )
        connection.number = self.link.next_stream()
        connection.start()
        connection.write(self.link.pack_hello(connection.number, self._network))
        try:
            async with asyncio.timeout(min(left_s, self._hello_timeout_s)):
                await self._hello
        except TimeoutError as error:
            raise error if isinstance(error, PeerError) else self._no_hello() from None
        finally:
            self.connection = None
            if connection.link is None:
                connection.close()

    def _stream_ended(self, connection: Connection, error: PeerError | str) -> None:
        if isinstance(error, str):
            # Not "unreachable": the peer may have closed it because a stream of its own came first.
            error = PeerTimeoutError(
                f"{connection.peer} closed the stream before its hello: {error}",
                peer=connection.peer,
            )
        self.settle(connection, error)

    def _no_hello(self) -> PeerTimeoutError:
        return PeerTimeoutError(
            f"{self.link.peer} was reached but did not say hello; it may be overloaded or frozen",
            peer=self.link.peer,
        )
