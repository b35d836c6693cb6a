"""The project's programs as real child processes: the demo, benchmarks and tests share it.

A program is started with one thread for each of its pools, its output is read line by line, and it
is ended by its process id together with the processes that it started itself.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import psutil

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment that keeps every thread pool of a process at one thread."""

Event = dict[str, Any]


def _interrupt(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def interrupt_on_sigterm() -> None:
    """SIGTERM ends this program as Ctrl-C does, so that it ends what it has started."""
    signal.signal(signal.SIGTERM, _interrupt)


class ProgramFailedError(Exception):
    """A program ended, or stayed silent, before it said what was awaited."""


def command_line(program: str) -> list[str]:
    """How to start a command (`swarm-server`, `swarm-plan` ...) of this environment."""
    script = Path(sys.executable).with_name(program)
    if script.exists():
        return [str(script)]
    module = program.removeprefix("swarm-")
    return [sys.executable, "-c", f"from swarm.cli.{module} import main; main()"]


class Program:
    """One program whose standard output is JSON, one object a line."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        on_event: Callable[[str, Event], None] | None = None,
    ) -> None:
        """Start `command`; `on_event` is called with `name` and each event, in another thread."""
        self.name = name
        self.events: list[Event] = []
        """All events so far, in order."""
        self._on_event = on_event
        self._arrived: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        # Lives as long as the program; `stop` closes it.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **ONE_THREAD, **(environment or {})},
            text=True,
            # A Ctrl-C at the terminal is for us, who then end the programs in order.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"{name} output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                event = {"event": "text", "text": line.rstrip("\n")}
            self.events.append(event)
            if self._on_event is not None:
                self._on_event(self.name, event)
            self._arrived.put(event)
        self._arrived.put(None)

    def wait_for(self, event: str, timeout_s: float = 120.0) -> Event:
        """The next event of this kind. Raises `ProgramFailedError` with the last words."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                found = self._arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ProgramFailedError(
                    f"{self.name} did not say {event!r} within {timeout_s:.0f} s{self.last_words()}"
                ) from None
            if found is None:
                self._arrived.put(None)
                code = self.process.wait()
                raise ProgramFailedError(
                    f"{self.name} ended with exit code {code} before it said"
                    f" {event!r}{self.last_words()}"
                )
            if found.get("event") == event:
                return found

    def forget_events(self) -> None:
        """From now on `wait_for` sees only what comes later."""
        with contextlib.suppress(queue.Empty):
            while self._arrived.get_nowait() is not None:
                pass
            self._arrived.put(None)

    def send_line(self, text: str) -> None:
        """Write one line to the program's standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def last_words(self, lines: int = 12) -> str:
        """The end of its standard error, for a message; empty if it wrote nothing."""
        self._errors.seek(0)
        tail = self._errors.read().splitlines()[-lines:]
        return "".join(f"\n  {line}" for line in tail)

    def ask_to_stop(self) -> None:
        """SIGTERM, without waiting: several programs end at the same time this way."""
        if self.process.poll() is None:
            self.process.terminate()

    def stop(self, timeout_s: float = 20.0) -> int:
        """End it with SIGTERM, and with SIGKILL if that takes longer; returns its exit code.

        Afterwards none of the processes that it started is left either.
        """
        family = _descendants(self.pid)
        if self.process.poll() is None:
            self.ask_to_stop()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                family += _descendants(self.pid)
                self.process.kill()
        code = self.process.wait()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._reader.join(timeout_s)
        for stream in (self.process.stdin, self.process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


class ServerProgram(Program):
    """One `swarm-server` on loopback."""

    def __init__(
        self,
        *,
        blocks: str | None,
        model: str | None = None,
        peers: Sequence[str] = (),
        options: Sequence[str] = (),
        program: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        on_event: Callable[[str, Event], None] | None = None,
    ) -> None:
        """`options`: any further ones. Without `--identity` in them it gets a key of its own.
        `program`: a command that takes the place of `swarm-server`."""
        self._folder = tempfile.TemporaryDirectory(prefix="swarm-server-")
        command = [*(program or command_line("swarm-server")), *([model] if model else [])]
        command += ["--blocks", blocks] if blocks else []
        command += ["--peers", *peers] if peers else []
        command += ["--threads", "1", "--json-logs", *options]
        if "--listen" not in options:
            command += ["--listen", "/ip4/127.0.0.1/tcp/0"]
        if "--identity" not in options:
            command += ["--identity", f"{self._folder.name}/identity"]
        self.blocks = blocks
        super().__init__(
            f"server {blocks or 'without --blocks'}",
            command,
            environment=environment,
            on_event=on_event,
        )

    def stop(self, timeout_s: float = 20.0) -> int:
        code = super().stop(timeout_s)
        self._folder.cleanup()
        return code

    def address(self, timeout_s: float = 120.0) -> str:
        """Where others join; waits until the server listens."""
        for event in self.events:
            if event.get("event") == "listening":
                return str(event["address"])
        return str(self.wait_for("listening", timeout_s)["address"])

    def wait_online(self, timeout_s: float = 180.0) -> Event:
        """Wait until it serves; returns its `online` event."""
        for event in self.events:
            if event.get("event") == "online":
                return event
        return self.wait_for("online", timeout_s)


StartServer = Callable[..., ServerProgram]


@contextlib.contextmanager
def running_servers(
    spans: Sequence[str],
    *,
    model: str | None = None,
    options: Sequence[str] = (),
    program: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    on_event: Callable[[str, Event], None] | None = None,
) -> Iterator[list[ServerProgram]]:
    """One new swarm with a server for each of `spans`, all online; ended on leaving."""
    with contextlib.ExitStack() as stack:
        servers: list[ServerProgram] = []
        for span in spans:
            server = ServerProgram(
                blocks=span,
                model=model,
                peers=[servers[0].address()] if servers else [],
                options=options,
                program=program,
                environment=environment,
                on_event=on_event,
            )
            servers.append(stack.enter_context(server))
        for server in servers:
            server.wait_online()
        try:
            yield servers
        finally:
            for server in servers:
                server.ask_to_stop()
