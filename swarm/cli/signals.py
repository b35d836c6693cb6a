"""The signals that a program serves by: stop, stop at once, tell what you do."""

import asyncio
import signal
from collections.abc import Callable
from typing import Self

_STOP = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Ctrl-C and SIGTERM: the first one sets `asked`, the next one `insisted`. SIGUSR1 calls
    `on_tell`, if there is one by then."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.asked: asyncio.Future[None] = self._loop.create_future()
        self.insisted: asyncio.Future[None] = self._loop.create_future()
        self.on_tell: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        for number in _STOP:
            self._loop.add_signal_handler(number, self._on_stop)
        # Handled from the beginning: its default is to end the process.
        self._loop.add_signal_handler(signal.SIGUSR1, self._on_usr1)
        return self

    def __exit__(self, *exception: object) -> None:
        for number in (*_STOP, signal.SIGUSR1):
            self._loop.remove_signal_handler(number)

    def _on_stop(self) -> None:
        for future in (self.asked, self.insisted):
            if not future.done():
                future.set_result(None)
                return

    def _on_usr1(self) -> None:
        if self.on_tell is not None:
            self.on_tell()
