"""How a command ends: one clear line and an exit code, never a traceback."""

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from swarm.cli.terminal import give_up
from swarm.errors import SwarmError, UsageError
from swarm.printable import printable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

DEBUG_VARIABLE = "SWARM_DEBUG"
"""Set to 1, errors show where they were raised."""


def one_line(error: BaseException | str) -> str:
    """The error's message on one line, without what could drive a terminal; never empty."""
    text = printable(" ".join(str(error).split()))
    return text or type(error).__name__


def exit_code(error: BaseException) -> int:
    """2 for what the caller can mend, 1 for everything else."""
    return EXIT_USAGE if isinstance(error, UsageError) or no_space(error) else EXIT_FAILED


def no_space(error: BaseException) -> bool:
    """Whether a disk, or our share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def explain(error: BaseException) -> str:
    """One line for the user; what nobody foresaw also names its class and how to see more."""
    if isinstance(error, SwarmError):
        return one_line(error)
    if isinstance(error, MemoryError):
        return "out of memory; host fewer --blocks or ask for fewer --cache-tokens"
    if isinstance(error, OSError) and no_space(error):
        where = error.filename or "what this writes"
        return f"no space is left for {where}; free some, or write elsewhere"
    return (
        f"unexpected {type(error).__name__}: {one_line(error)}"
        f" (run again with {DEBUG_VARIABLE}=1 to see where)"
    )


def fail(error: BaseException, report: Callable[[str], None] | None = None) -> NoReturn:
    """Says what went wrong, by `report` or on standard error, and ends the program."""
    raise SystemExit(_tell(error, report))


def _tell(error: BaseException, report: Callable[[str], None] | None = None) -> int:
    if os.environ.get(DEBUG_VARIABLE) == "1":
        import traceback

        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    (report or say_error)(explain(error))
    return exit_code(error)


def say_error(message: str) -> None:
    """One line on standard error. Where that is closed or full, the exit code has to say it."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"error: {message}\n")


def run(
    command: Callable[[], None],
    report: Callable[[str], None] | None = None,
    interrupted: int = EXIT_INTERRUPTED,
) -> None:
    """Runs `command`; any error becomes one line and an exit code.

    `report`: tells errors, of a command that goes on when its output cannot be written.
    """
    try:
        command()
    except KeyboardInterrupt:
        raise SystemExit(interrupted) from None
    except Exception as error:
        if report is None and isinstance(error, BrokenPipeError):
            # The reader of our output has gone (`| head`): there is nobody left to tell.
            raise SystemExit(EXIT_FAILED) from None
        fail(error, report)


def run_program(app: Callable[..., Any], program: str, arguments: Sequence[str]) -> NoReturn:
    """Runs a typer program to its exit; a mistake in its options becomes one line, too."""
    _open_closed_streams()
    try:
        code = app(args=list(arguments), prog_name=program, standalone_mode=False) or EXIT_OK
    except SystemExit as end:
        code = end.code
    except BrokenPipeError:
        code = EXIT_FAILED
    except Exception as error:
        # typer carries click's classes inside and does not export them.
        explain_usage = getattr(error, "format_message", None)
        if explain_usage is None:
            code = _tell(error)
        else:
            # Of the command itself, where a program has several.
            asked = getattr(getattr(error, "ctx", None), "command_path", program)
            say_error(f"{one_line(explain_usage())} (see {asked} --help)")
            code = EXIT_USAGE
    _leave(code if isinstance(code, int) else EXIT_FAILED)


def _open_closed_streams() -> None:
    """Who was started with a closed standard stream (`>&-`) gets one that leads nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the program


def _leave(code: int) -> NoReturn:
    """Ends the program. A thread that is deep in torch and cannot be told to stop would make the
    interpreter's own teardown abort; then nothing is torn down."""
    client = sys.modules.get("swarm.client.runtime")
    if client is not None:
        # Closes sessions and ends the daemon, which nothing below does.
        client.stop_runtime()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # The interpreter's end shall not try it again.
            give_up(stream)
            if stream is sys.stdout:
                code = code or EXIT_FAILED
    if any(thread.daemon and thread.is_alive() for thread in threading.enumerate()):
        os._exit(code)
    raise SystemExit(code)
