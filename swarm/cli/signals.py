"""The signals that a program serves by: stop, stop at once, tell what you do."""

import asyncio
import signal
from collections.abc import Callable
from typing import Self


class Signals:
    """Ctrl-C and SIGTERM: the first one sets `asked`, the next one `insisted`. SIGHUP, when the
    terminal is closed, sets `asked`, unless it is ignored, as by `nohup`. SIGUSR1 calls `on_tell`,
    if there is one by then."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.asked: asyncio.Future[None] = self._loop.create_future()
        self.insisted: asyncio.Future[None] = self._loop.create_future()
        self.on_tell: Callable[[], None] | None = None
        # SIGUSR1 is handled from the beginning: its default is to end the process.
        self._handlers = {
            signal.SIGINT: self._on_stop,
            signal.SIGTERM: self._on_stop,
            signal.SIGUSR1: self._on_usr1,
        }
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._handlers[signal.SIGHUP] = self._on_hangup

    def __enter__(self) -> Self:
        for number, handler in self._handlers.items():
            self._loop.add_signal_handler(number, handler)
        return self

    def __exit__(self, *exception: object) -> None:
        for number in self._handlers:
            self._loop.remove_signal_handler(number)

    def _on_stop(self) -> None:
        for future in (self.asked, self.insisted):
            if not future.done():
                future.set_result(None)
                return

    def _on_hangup(self) -> None:
        # The shell sends one and the system another: neither insists.
        if not self.asked.done():
            self.asked.set_result(None)

    def _on_usr1(self) -> None:
        if self.on_tell is not None:
            self.on_tell()
