"""One background thread with an event loop for all swarms of the process."""

import asyncio
import atexit
import concurrent.futures
import contextlib
import inspect
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any, Generic, TypeVar

from swarm.errors import SwarmError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Waited(Generic[T]):
    """Work of the loop that a thread waits for. Its result may be there when the thread is
    interrupted, or come although the work was cancelled."""

    def __init__(self, work: Coroutine[Any, Any, T], discard: Callable[[T], object] | None) -> None:
        self.forsaken = False
        """Nobody waits any more; set by the thread, before it asks for `give_back`."""
        self._work = work
        self._discard = discard
        self._results: list[T] = []

    async def run(self) -> T:
        result = await self._work
        self._results.append(result)
        if self.forsaken:
            self.give_back()
        return result

    def give_back(self) -> None:
        """In the loop, after it was cancelled."""
        if inspect.getcoroutinestate(self._work) == inspect.CORO_CREATED:
            self._work.close()  # it had not begun
        results, self._results = self._results, []
        for result in results:
            if self._discard is not None:
                self._discard(result)


class Runtime:
    """The loop, used from any thread, also inside another running loop (Jupyter's).

    What runs there does not inherit the caller's context variables: the timers of a link would keep
    alive, for as long as the link lives, the cache of the call that happened to open it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._closers: dict[object, tuple[Callable[[], Awaitable[None]], float]] = {}
        """What to await at the end, and how long that may take."""
        self._thread = threading.Thread(target=self._serve, name="swarm client", daemon=True)
        self._thread.start()

    def run(
        self,
        work: Coroutine[Any, Any, T],
        timeout_s: float | None = None,
        *,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """Wait for `work` in the loop. Interrupted or too late, the work is cancelled; `discard` is
        then called in the loop with what it made all the same, for nobody else knows it.

        Raises TimeoutError, and SwarmError when called from the loop's own thread.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise SwarmError("the swarm's own event loop cannot wait for itself")
        waited = _Waited(work, discard)
        future = Context().run(asyncio.run_coroutine_threadsafe, waited.run(), self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.CancelledError as error:
            raise SwarmError("the swarm was closed meanwhile") from error
        except BaseException:
            future.cancel()
            waited.forsaken = True
            self.call_soon(waited.give_back)
            raise

    def call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        """Run `callback` in the loop; never waits, also from a finalizer in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left to do
            self._loop.call_soon_threadsafe(callback, *args, context=Context())

    def close_at_exit(
        self, key: object, close: Callable[[], Awaitable[None]], within_s: float
    ) -> None:
        """Await `close()` when the program ends, unless `forget(key)` was called before. It gets at
        least `within_s`, and is cut off when everybody's time is over."""
        self._closers[key] = (close, within_s)

    def forget(self, key: object) -> None:
        self._closers.pop(key, None)

    def stop(self) -> None:
        """Close what is open, all at once and within its time, and end the thread."""
        if self._loop.is_closed() or not self._thread.is_alive():
            return
        closers = list(self._closers.values())
        try:
            if closers:
                longest_s = max(within_s for _, within_s in closers)
                self.run(self._close_all([close for close, _ in closers]), longest_s)
        except (TimeoutError, SwarmError):
            logger.warning("the swarm was left without goodbye: too slow to answer")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)

    async def _close_all(self, closers: Iterable[Callable[[], Awaitable[None]]]) -> None:
        results = await asyncio.gather(*(close() for close in closers), return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                logger.warning("a swarm was not closed in order", exc_info=result)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._cancel_all()
        finally:
            self._loop.close()

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            gathered = asyncio.gather(*tasks, return_exceptions=True)
            self._loop.run_until_complete(asyncio.wait_for(gathered, 1.0))


_lock = threading.Lock()
_runtime: Runtime | None = None
_inherited: list[Runtime] = []
"""Of the parent process; kept so that nobody closes what belongs to the parent."""


def runtime() -> Runtime:
    """The runtime of this process; made when first asked for, and anew after a fork."""
    global _runtime
    with _lock:
        if _runtime is None:
            _runtime = Runtime()
        return _runtime


def _after_fork() -> None:
    global _lock, _runtime
    _lock = threading.Lock()
    if _runtime is not None:
        _inherited.append(_runtime)
    _runtime = None


def stop_runtime() -> None:
    """Stop this process's runtime, if it has one; for a program that ends without `atexit`."""
    if _runtime is not None:
        _runtime.stop()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(stop_runtime)
