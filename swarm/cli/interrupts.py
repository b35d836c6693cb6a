"""Signals: SIGTERM closes what is open, and a Ctrl-C may end an answer and not the program."""

import signal
from types import FrameType
from typing import Any, NoReturn, Self

from swarm.cli.errors import EXIT_INTERRUPTED


def end_on_sigterm() -> None:
    """From now on SIGTERM raises SystemExit in the main thread, so that what is open is closed on
    the way out; the exit code is Ctrl-C's."""
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_INTERRUPTED)


class StopOnInterrupt:
    """Within its `with` block the first Ctrl-C only sets `asked`; the next one raises
    KeyboardInterrupt. For the main thread."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True
