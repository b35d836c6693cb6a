"""What commands write: answers and tables to standard output, all else to standard error."""

import errno
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

import typer

from swarm.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

TABLE_COLUMNS = 120
"""Of a table that goes into a file or another program."""
_HARMLESS = "\n\t"


def write(text: str) -> None:
    """To standard output, at once. A terminal gets no control characters: they come from
    strangers, and could change what it shows."""
    if sys.stdout.isatty():
        text = "".join(one for one in text if one in _HARMLESS or one.isprintable())
    typer.echo(text, nl=False)
    sys.stdout.flush()


def say(text: str) -> None:
    """One line to standard error."""
    typer.echo(text, err=True)


def table_console() -> "Console":
    """For tables on standard output: as wide as the terminal, or `TABLE_COLUMNS`."""
    return plain_console(width=None if sys.stdout.isatty() else TABLE_COLUMNS)


def plain_console(**options: Any) -> "Console":
    """rich's, with these options of it; that its reader has gone is an error like others."""
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            # rich would raise SystemExit here, which ends a server from within any of its tasks.
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    return PlainConsole(highlight=False, **options)


def give_up(stream: TextIO) -> None:
    """What the stream still holds cannot be written: it goes nowhere, and so does what follows."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)


def say_prefill(done: int, total: int) -> None:
    """The progress of a prompt: on a terminal one line that changes, else a line a piece."""
    text = f"prompt: {done} of {total} tokens"
    if not sys.stderr.isatty():
        say(text)
    else:
        typer.echo(f"\r{text}" + ("\r\x1b[K" if done == total else ""), err=True, nl=False)


def checked_text(text: str, what: str) -> str:
    """The text itself; UsageError for bytes of a shell or a pipe that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not UTF-8 text; convert it to that encoding") from None
    return text


def take_any_text() -> None:
    """Text that the terminal's or the pipe's encoding lacks becomes `?` instead of an error."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
