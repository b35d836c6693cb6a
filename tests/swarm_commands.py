"""`swarm-client` as a user runs it, and what it says of a swarm."""

import subprocess
import time
from collections.abc import Sequence
from typing import Any

from processes import command_line

from swarm.client.membership import Membership
from swarm.client.settings import ClientSettings
from swarm.client.status import best_status
from swarm.client.swarm import Swarm


def client_command(*arguments: str) -> list[str]:
    return [*command_line("swarm-client"), *arguments]


def generate(
    address: str, prompt: str, tokens: int, *options: str, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """One `swarm-client generate --json`, run to its end."""
    return subprocess.run(
        client_command(
            *("generate", "--peers", address, "--prompt", prompt, "--json"),
            *("--max-new-tokens", str(tokens), *options),
        ),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
    )


IMPATIENT = """
from dataclasses import dataclass

import swarm.client.settings

@dataclass(frozen=True)
class Impatient(swarm.client.settings.ClientSettings):
    repair_timeout_s: float = 2.0

swarm.client.settings.ClientSettings = Impatient
from swarm.cli.client import main
main()
"""
"""`swarm-client` that looks for other servers for a shorter time, when it has lost some."""


def start_generating(
    address: str,
    prompt: str,
    tokens: int,
    *options: str,
    program: Sequence[str] | None = None,
) -> subprocess.Popen[str]:
    """A streaming `swarm-client generate` that has printed its first characters.

    `program`: a command that takes the place of `swarm-client`."""
    process = subprocess.Popen(
        [
            *(program or client_command()),
            *("generate", "--peers", address, "--prompt", prompt),
            *("--max-new-tokens", str(tokens), *options),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.read(1), process.stderr.read() if process.stderr else ""
    return process


def status(address: str) -> dict[str, Any]:
    """What `swarm-client status --json` prints, without the seconds that a new process takes."""

    async def ask(swarm: Swarm) -> dict[str, Any]:
        return await best_status(swarm, await swarm.models(), 10.0)

    membership = Membership([address], ClientSettings())
    try:
        runtime, swarm = membership.get()
        return runtime.run(ask(swarm), 60.0)
    finally:
        membership.close()


def free_tokens(address: str) -> dict[str, int]:
    """Free cache tokens of each server, by its blocks."""
    return {row["blocks"]: row["cache_tokens_free"] for row in status(address)["servers"]}


def sessions(address: str) -> int:
    return sum(row["sessions"] for row in status(address)["servers"])


def wait_until_free(address: str, expected: dict[str, int], timeout_s: float = 45) -> None:
    """Waits until the caches are back at exactly `expected`; fails with both if they never are."""
    deadline = time.monotonic() + timeout_s
    while (found := free_tokens(address)) != expected and time.monotonic() < deadline:
        time.sleep(0.3)
    assert found == expected
    assert sessions(address) == 0
