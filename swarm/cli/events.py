"""A server's events on the terminal: lines and tables for people, or one JSON object a line."""

import contextlib
import io
import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import typer

from swarm.cli.errors import no_space
from swarm.cli.terminal import give_up, table_console
from swarm.printable import printable

logger = logging.getLogger(__name__)


class Event(Protocol):
    """What a server or a bootstrap peer tells."""

    @property
    def event(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def fields(self) -> Mapping[str, Any]: ...


class Printer(Protocol):
    """What shows the events of a program that serves."""

    def __call__(self, event: Event) -> None: ...

    def error(self, message: str) -> None:
        """The last word of a command that fails."""

    def close(self) -> None:
        """Nothing more will come."""


class EventPrinter:
    """Writes each event at once, so that a program that reads the lines need not wait."""

    def __init__(self, json_lines: bool, *, tables: bool = True) -> None:
        """`tables`: what the server does is shown as a table, else in one line."""
        self._json_lines = json_lines
        self._tables = tables
        self._progress_shown = False
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A name that the terminal cannot show must not end the server.
            sys.stdout.reconfigure(errors="replace")

    def __call__(self, event: Event) -> None:
        if self._json_lines:
            line = {"event": event.event, "time": round(time.time(), 3), **event.fields}
            if event.event == "notice":
                line["message"] = event.text
            typer.echo(json.dumps(line, separators=(",", ":")))
            sys.stdout.flush()
            return
        live = event.event == "loading" and sys.stdout.isatty()
        if self._progress_shown:
            typer.echo("\r\x1b[K", nl=False)
        if event.event == "stats" and self._tables:
            _print_table(event.fields)
        else:
            typer.echo(printable(event.text), nl=not live)
        self._progress_shown = live
        sys.stdout.flush()

    def error(self, message: str) -> None:
        """The last word of a command that fails."""
        try:
            if self._json_lines:
                line = {"event": "error", "time": round(time.time(), 3), "message": message}
                typer.echo(json.dumps(line, separators=(",", ":")))
        finally:
            typer.echo(f"error: {message}", err=True)

    def close(self) -> None:
        """Nothing is kept back."""


class LastingPrinter:
    """Shows events while that can be done: who serves others goes on when nobody reads them.

    The first event that cannot be written is told once, in the log. A full disk may have room
    again, so the next ones are tried all the same; when the reader has gone or the terminal was
    closed, they are not. None of it changes the exit code.
    """

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._warned = False
        self._nobody_reads = False

    def __call__(self, event: Event) -> None:
        if self._nobody_reads:
            return
        try:
            self._printer(event)
        except OSError as error:
            self._failed(error)

    def error(self, message: str) -> None:
        """The last word of a command that fails, if anybody hears it."""
        with contextlib.suppress(OSError):
            self._printer.error(message)

    def close(self) -> None:
        """Nothing more will come, and what could not be written until now is given up."""
        try:
            self._printer.close()
            sys.stdout.flush()
        except OSError:
            with contextlib.suppress(OSError):
                give_up(sys.stdout)

    def _failed(self, error: OSError) -> None:
        if not no_space(error):
            self._nobody_reads = True
            self.close()
        if not self._warned:
            self._warned = True
            reason = error.strerror or str(error)
            logger.warning("events can no longer be written (%s); going on without them", reason)


def _print_table(fields: Mapping[str, Any]) -> None:
    from swarm.cli.server_table import report_table

    table_console().print(report_table(fields))
