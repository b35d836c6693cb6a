"""The demo as a user runs it, in an environment that is set up already."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo.py"


def start_demo(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DEMO), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_demo_streams_a_text_names_its_route_and_leaves_nothing() -> None:
    demo = start_demo("--max-new-tokens", "8")
    text, told = demo.communicate(timeout=240)
    assert demo.returncode == 0, told
    assert text.strip().startswith("used to create books")
    route = next(line for line in told.splitlines() if line.startswith("route: "))
    assert [hop.split(" on ")[0] for hop in route.removeprefix("route: ").split(" -> ")] == [
        "0:10",
        "10:20",
        "20:30",
    ]
    assert "tokens/s, first token after" in told
    assert "no process is left" in told


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.matrix)]
)
def test_an_interrupted_demo_ends_its_servers(number: signal.Signals) -> None:
    demo = start_demo()
    assert demo.stderr is not None
    for line in demo.stderr:
        if "loads its blocks" in line:
            break
    started = psutil.Process(demo.pid).children(recursive=True)
    assert started
    os.kill(demo.pid, number)
    _, told = demo.communicate(timeout=120)
    assert demo.returncode == 130, told
    assert not [process for process in started if process.is_running()]
