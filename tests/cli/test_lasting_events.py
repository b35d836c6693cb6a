"""A server's events that cannot be written: it goes on, and says so once."""

import contextlib
import errno
import io
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from server_reports import stats

from swarm.cli.events import EventPrinter, LastingPrinter, Printer
from swarm.cli.terminal import plain_console
from swarm.cli.watching import WatchScreen
from swarm.server.events import ServerEvent

NOTICE = ServerEvent("notice", "it stays", {"blocks": "0:2"})
REASONS = {
    "full disk": "No space left on device",
    "no reader": "Broken pipe",
    "closed terminal": "Input/output error",
}


def _unwritable(kind: str) -> int:
    if kind == "full disk":
        return os.open("/dev/full", os.O_WRONLY)
    other, ours = os.pipe() if kind == "no reader" else pty.openpty()
    os.close(other)
    return ours


@pytest.fixture
def output(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    """What cannot be written; the test puts it in place of standard output."""
    file = os.fdopen(_unwritable(request.param), "w")
    yield file
    with contextlib.suppress(OSError):
        file.close()


def _printer(shown: str, output: TextIO) -> Printer:
    if shown == "live table":
        return WatchScreen(plain_console(file=output, force_terminal=True, width=100))
    return EventPrinter(shown == "objects")


@pytest.mark.parametrize("shown", ["objects", "tables", "live table"])
@pytest.mark.parametrize("output", REASONS, indirect=True)
def test_who_tells_goes_on_and_it_is_logged_once(
    shown: str,
    output: TextIO,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdout", output)
    kind = request.node.callspec.params["output"]
    before = sys.stderr
    printer = LastingPrinter(_printer(shown, output))
    for _ in range(3):
        printer(stats())
        printer(NOTICE)
    printer.close()
    printer.error("the disk is lost")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert REASONS[kind] in caplog.text
    assert capsys.readouterr().err.strip() == "error: the disk is lost"
    assert (sys.stdout, sys.stderr) == (output, before), "rich has put nothing before them"


@pytest.mark.parametrize("output", REASONS, indirect=True)
def test_what_is_left_is_no_fault_of_the_programs_end(
    output: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", output)
    printer = LastingPrinter(EventPrinter(True))
    printer(NOTICE)
    printer.close()
    output.flush()


def test_a_terminal_that_is_closed_while_the_table_lives(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        console = plain_console(file=output, force_terminal=True, width=100)
        printer = LastingPrinter(WatchScreen(console))
        printer(ServerEvent("loading", "loading blocks 0:2: 50 %"))
        assert sys.stdout is not output, "rich writes above the table what others print"
        os.close(ours)
        for _ in range(3):
            printer(stats())
        assert sys.stdout is output
        printer.close()
        monkeypatch.undo()
    assert [REASONS["closed terminal"] in record.message for record in caplog.records] == [True]


class Disk(io.RawIOBase):
    """It is full for a while."""

    def __init__(self) -> None:
        self.full = False
        self.written = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += bytes(data)
        return len(data)


def test_a_disk_that_has_room_again_is_written_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BufferedWriter(disk)))
    printer = LastingPrinter(EventPrinter(False))
    for text in ("one", "two", "three", "four"):
        disk.full = text in ("two", "three")
        printer(ServerEvent("notice", text))
    assert disk.written.startswith(b"one\n") and disk.written.endswith(b"four\n")
    assert len(caplog.records) == 1


SERVES = """
import asyncio, os, signal
import typer
from swarm.cli.errors import run, run_program
from swarm.cli.events import EventPrinter, LastingPrinter
from swarm.cli.logs import log_to_stderr
from swarm.cli.serving import serve
from swarm.server.events import ServerEvent

class Serving:
    def __init__(self, tell):
        self._tell = tell

    async def start(self):
        self.tell_now()

    async def failed(self):
        for _ in range(5):
            self.tell_now()
            await asyncio.sleep(0.01)
        open("served", "w").close()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    async def stop(self, *, drain=True):
        self.tell_now()

    def tell_now(self):
        self._tell(ServerEvent("notice", "still here"))

app = typer.Typer()

@app.command()
def serving():
    printer = LastingPrinter(EventPrinter(True))
    def command():
        try:
            serve(lambda: Serving(printer))
        finally:
            printer.close()
    run(command, printer.error)

log_to_stderr()
run_program(app, "serving", [])
"""


@pytest.mark.parametrize("errors", ["read", "lost"])
@pytest.mark.parametrize("kind", ["full disk", "no reader"])
def test_a_program_serves_until_it_is_told_to_stop(kind: str, errors: str, tmp_path: Path) -> None:
    """Also when what it logs is lost, too."""
    output = _unwritable(kind)
    try:
        done = subprocess.run(
            [sys.executable, "-c", SERVES],
            stdout=output,
            stderr=subprocess.PIPE if errors == "read" else output,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    finally:
        os.close(output)
    assert (tmp_path / "served").exists()
    assert done.returncode == 0, done.stderr
    if errors == "read":
        (line,) = done.stderr.splitlines()
        assert line.startswith("WARNING swarm.cli.events: ") and REASONS[kind] in line
