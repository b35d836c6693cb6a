"""What the client's commands write: answers to standard output, all else to standard error."""

import sys

import typer

from swarm.errors import UsageError

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


def say_prefill(done: int, total: int) -> None:
    """The progress of a prompt: on a terminal one line that changes, else a line a piece."""
    text = f"prompt: {done} of {total} tokens"
    if not sys.stderr.isatty():
        say(text)
    else:
        typer.echo(f"\r{text}" + ("\r\x1b[K" if done == total else ""), err=True, nl=False)


def checked_text(text: str, what: str) -> str:
    """The text itself; UsageError for bytes of a shell or a pipe that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is no text in UTF-8; write it anew in that encoding") from None
    return text


def take_any_text() -> None:
    """Text that the terminal's or the pipe's encoding lacks becomes `?` instead of an error."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
