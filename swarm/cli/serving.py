"""A program that runs until it is told to stop: start, wait for a signal, drain, close."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from swarm.cli.signals import Signals


class Serving(Protocol):
    """A server or a bootstrap peer."""

    async def start(self) -> None:
        """Returns when it serves. When it raises or is cancelled, it has cleaned up."""

    async def stop(self, *, drain: bool = True) -> None:
        """Ends it; without `drain` at once, also when another call is still draining."""

    async def failed(self) -> None:
        """Waits while it can go on; raises `SwarmError` when it cannot."""

    def tell_now(self) -> None:
        """Tells what it does now, as far as there is something to tell."""


def serve(make: Callable[[], Serving], *, tell_first: bool = False) -> None:
    """Runs what `make` makes until Ctrl-C, SIGTERM or SIGHUP; a second one of the first two ends it
    without draining.

    SIGUSR1 lets it tell what it does, and so does `tell_first` once when it serves. `make` may
    take seconds, for imports; signals count from the beginning. Returns after a clean end, raises
    what `start` and `failed` raise.
    """
    asyncio.run(_serve(make, tell_first))


async def _serve(make: Callable[[], Serving], tell_first: bool) -> None:
    with Signals() as signals:
        serving = await asyncio.to_thread(make)
        signals.on_tell = serving.tell_now
        if not signals.asked.done():
            await _run(serving, signals, tell_first)


async def _run(serving: Serving, signals: Signals, tell_first: bool) -> None:
    if await _until(serving.start(), signals.asked):
        drain = False
        try:
            if tell_first:
                serving.tell_now()
            await _until(serving.failed(), signals.asked)
            drain = True
        finally:
            stopping = asyncio.ensure_future(serving.stop(drain=drain))
            await asyncio.wait([stopping, signals.insisted], return_when=asyncio.FIRST_COMPLETED)
            await serving.stop(drain=False)
            await stopping
    else:
        await serving.stop(drain=False)


async def _until(work: Coroutine[Any, Any, None], signal_came: asyncio.Future[None]) -> bool:
    """Awaits `work`, or cancels it when the signal comes first; whether `work` was finished."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task, signal_came], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False
