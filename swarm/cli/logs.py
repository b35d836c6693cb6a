"""What libraries and the background tasks log: warnings, on standard error."""

import logging
import sys
from typing import TextIO

from swarm.printable import printable


def log_to_stderr() -> None:
    """For a program, once. Texts of peers in the log cannot drive the terminal."""
    handler = _StandardError()
    handler.setFormatter(_Printable("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_tells_users_something)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _tells_users_something(record: logging.LogRecord) -> bool:
    # A daemon that ends just when it is told to may be reaped by `Popen.send_signal`, and asyncio
    # then wonders where its child is.
    return not str(record.msg).startswith("Unknown child process pid")


class _StandardError(logging.StreamHandler[TextIO]):
    """Asks for `sys.stderr` each time, because a live table puts itself before it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Printable(logging.Formatter):
    """Only the lines of a traceback are lines of their own."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))
