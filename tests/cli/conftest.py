"""What the tests of the commands share."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from processes import command_line

from swarm.cli.client import app

RunClient = Callable[[Sequence[str]], tuple[int, str, str]]


@pytest.fixture
def run_client(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunClient:
    """`swarm-client` in this process: its exit code, standard output and standard error."""
    monkeypatch.setattr("swarm.cli.client.end_on_sigterm", lambda: None)

    def run_client(arguments: Sequence[str]) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = app(args=list(arguments), standalone_mode=False) or 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run_client


@pytest.fixture
def plan_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes an inventory for `swarm-plan`."""

    def write(text: str) -> Path:
        path = tmp_path / "plan.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def plan() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`swarm-plan` as a process of its own, with these arguments."""

    def plan(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command_line("swarm-plan"), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
        )

    return plan


@pytest.fixture
def run_python() -> Callable[[str], str]:
    """Runs a program in a new interpreter, which has to end well; its standard output."""

    def run_python(program: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_python
