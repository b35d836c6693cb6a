"""Who waits until the link to a peer is up."""

import asyncio

from swarm.errors import PeerError, PeerTimeoutError
from swarm.spans import PeerId


class LinkWaiters:
    """Futures of those who wait, by peer."""

    def __init__(self) -> None:
        self._waiters: dict[PeerId, list[asyncio.Future[None]]] = {}

    def peers(self) -> list[PeerId]:
        """For whose links somebody waits."""
        return list(self._waiters)

    async def wait(self, peer: PeerId, timeout_s: float) -> None:
        """Returns when `settle` says that the link is up.

        Raises what `settle` is given, or PeerTimeoutError.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(peer, [])
        waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError as error:
            if isinstance(error, PeerError):
                raise
            raise PeerTimeoutError(
                f"{peer} did not answer within {timeout_s:g} s; it may be down, or behind a "
                "firewall or router that lets nobody in",
                peer=peer,
            ) from None
        finally:
            if waiter in waiters:
                waiters.remove(waiter)

    def settle(self, peer: PeerId, error: PeerError | None) -> None:
        """The link is up, or (`error`) will not be: nobody waits for it any more."""
        for waiter in self._waiters.pop(peer, ()):
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
