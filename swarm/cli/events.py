"""A server's events on the terminal: lines for people, or one JSON object a line."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import typer


class Event(Protocol):
    """What a server or a bootstrap peer tells."""

    @property
    def event(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def fields(self) -> Mapping[str, Any]: ...


class EventPrinter:
    """Writes each event at once, so that a program that reads the lines need not wait."""

    def __init__(self, json_lines: bool) -> None:
        self._json_lines = json_lines
        self._progress_shown = False

    def __call__(self, event: Event) -> None:
        if self._json_lines:
            line = {"event": event.event, "time": round(time.time(), 3), **event.fields}
            typer.echo(json.dumps(line, separators=(",", ":")))
            sys.stdout.flush()
            return
        live = event.event == "loading" and sys.stdout.isatty()
        if self._progress_shown:
            typer.echo("\r\x1b[K", nl=False)
        typer.echo(event.text, nl=not live)
        self._progress_shown = live
        sys.stdout.flush()

    def error(self, message: str) -> None:
        """The last word of a command that fails."""
        if self._json_lines:
            line = {"event": "error", "time": round(time.time(), 3), "message": message}
            typer.echo(json.dumps(line, separators=(",", ":")))
        typer.echo(f"error: {message}", err=True)
