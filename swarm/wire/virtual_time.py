"""An event loop whose clock jumps to the next timer instead of waiting for it.

Tests over the in-memory network run in it: hours pass in milliseconds, and always alike. There is
nothing outside the loop that it could wait for: no sockets, no threads, no processes.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class NothingScheduledError(RuntimeError):
    """Every task waits, and no timer is set that could wake one: it would hang for ever."""


class _Clock(selectors.SelectSelector):
    """Waiting makes the time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingScheduledError("all tasks wait for each other, and no timer is set")
        if timeout > 0:
            self.now += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0 and moves only when nothing is ready to run."""

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._clock.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` to its end in virtual time, like `asyncio.run`.

    Raises NothingScheduledError if it can never end.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
