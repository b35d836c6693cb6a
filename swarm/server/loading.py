"""Slow work in a thread of its own, for which neither the loop nor the program's end waits."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

END_TIMEOUT_S = 5.0
"""How long a thread whose work nobody waits for is waited for: it may be deep in torch."""


class LoadingStoppedError(Exception):
    """Raised inside the thread, by `check`, when nobody waits for its result any more."""


async def in_own_thread(work: Callable[[Callable[[], None]], Result]) -> Result:
    """Runs `work(check)` in a daemon thread; its result or error.

    When the caller is cancelled, `check`, which the work calls now and then, raises
    `LoadingStoppedError`; the thread then gets `END_TIMEOUT_S` to end.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise LoadingStoppedError

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = work(check)
        except BaseException as raised:
            error = raised
        # The loop may be closed: then nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=run, name="swarm-loading", daemon=True)
    thread.start()
    try:
        return await future
    finally:
        stopped.set()
        await asyncio.to_thread(thread.join, END_TIMEOUT_S)


class ProgressSteps:
    """Lets through about one report in every tenth of the work."""

    def __init__(self, report: Callable[[int, int], None], steps: int = 10) -> None:
        self._report = report
        self._steps = steps
        self._reached = -1

    def __call__(self, done: int, total: int) -> None:
        step = self._steps * done // max(1, total)
        if step > self._reached:
            self._reached = step
            self._report(done, total)
