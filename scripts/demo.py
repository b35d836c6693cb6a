"""Three servers on this machine, each with ten of the 30 blocks of SmolLM2, and one generated text.

`scripts/demo` runs it in the project's own environment.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import psutil
from processes import (
    ONE_THREAD,
    Event,
    ProgramFailedError,
    ServerProgram,
    command_line,
    interrupt_on_sigterm,
    running_servers,
)

SPANS = ("0:10", "10:20", "20:30")
PROMPT = (
    "The history of the printing press begins in the city of Mainz, where a goldsmith named"
    " Johannes Gutenberg developed a system of movable metal type that could be"
)


class Progress:
    """One line for each change of a server's state."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._said: set[tuple[str, str]] = set()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:5.1f} s] {text}", file=sys.stderr, flush=True)

    def on_event(self, server: str, event: Event) -> None:
        kind = str(event.get("event"))
        text = {
            "listening": f"{server}: listens at {event.get('address')}",
            "loading": f"{server}: loads its blocks",
            "online": f"{server}: online",
            "stopped": f"{server}: stopped",
        }.get(kind)
        with self._lock:
            if text is not None and (server, kind) not in self._said:
                self._said.add((server, kind))
                self.say(text)


def generate(servers: Sequence[ServerProgram], prompt: str, new_tokens: int) -> int:
    """Run `swarm-client generate` on our own terminal; returns its exit code."""
    command = [*command_line("swarm-client"), "generate", "--peers", servers[0].address()]
    command += ["--prompt", prompt, "--max-new-tokens", str(new_tokens)]
    client = subprocess.Popen(command, env={**os.environ, **ONE_THREAD})
    try:
        return client.wait()
    finally:
        if client.poll() is None:
            client.terminate()
            client.wait()


def left_over() -> list[psutil.Process]:
    """Processes that we, or those that we started, left running."""
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--prompt", default=PROMPT, help="the text to continue")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="how long to continue")
    options = parser.parse_args()
    interrupt_on_sigterm()
    progress = Progress()
    try:
        progress.say("starting three servers")
        with running_servers(SPANS, on_event=progress.on_event) as servers:
            progress.say(f"continuing this text: {options.prompt} ...")
            code = generate(servers, options.prompt, options.max_new_tokens)
            progress.say("stopping the servers")
    except ProgramFailedError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # One may have been started in the very moment of the signal.
        for process in left_over():
            process.kill()
        print("demo: interrupted; everything has been stopped", file=sys.stderr)
        return 130
    if left := left_over():
        print(f"demo: processes are left: {[process.pid for process in left]}", file=sys.stderr)
        return 1
    progress.say("done; no process is left")
    return code


if __name__ == "__main__":
    sys.exit(main())
