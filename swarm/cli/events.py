"""A server's events on the terminal: lines and tables for people, or one JSON object a line."""

import io
import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import typer

from swarm.cli.terminal import table_console
from swarm.printable import printable


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
        if self._json_lines:
            line = {"event": "error", "time": round(time.time(), 3), "message": message}
            typer.echo(json.dumps(line, separators=(",", ":")))
        typer.echo(f"error: {message}", err=True)

    def close(self) -> None:
        """Nothing is kept back."""


def _print_table(fields: Mapping[str, Any]) -> None:
    from swarm.cli.server_table import report_table

    table_console().print(report_table(fields))
