"""A program that runs until it is told to stop: start, wait for a signal, drain, close."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Serving(Protocol):
    """A server or a bootstrap peer."""

    async def start(self) -> None:
        """Returns when it serves. When it raises or is cancelled, it has cleaned up."""

    async def stop(self, *, drain: bool = True) -> None:
        """Ends it; without `drain` at once, also when another call is still draining."""

    async def failed(self) -> None:
        """Waits while it can go on; raises `SwarmError` when it cannot."""


def serve(make: Callable[[], Serving]) -> None:
    """Runs what `make` makes until Ctrl-C or SIGTERM; a second signal ends it without draining.

    `make` may take seconds, for imports; signals count from the beginning. Returns after a clean
    end, raises what `start` and `failed` raise.
    """
    asyncio.run(_serve(make))


class _StopSignals:
    """Ctrl-C and SIGTERM: the first one sets `asked`, the next one `insisted`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.asked: asyncio.Future[None] = self._loop.create_future()
        self.insisted: asyncio.Future[None] = self._loop.create_future()

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        for future in (self.asked, self.insisted):
            if not future.done():
                future.set_result(None)
                return


async def _serve(make: Callable[[], Serving]) -> None:
    with _StopSignals() as signals:
        serving = await asyncio.to_thread(make)
        if not signals.asked.done():
            await _run(serving, signals)


async def _run(serving: Serving, signals: _StopSignals) -> None:
    if await _until(serving.start(), signals.asked):
        drain = False
        try:
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
