"""The signals of programs that serve."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SERVES = """
import asyncio, os, signal
from swarm.cli.serving import serve

class Serving:
    async def start(self): ...

    async def failed(self):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.2)
        open("goes on", "w").close()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    async def stop(self, *, drain=True):
        if drain:
            await asyncio.sleep(0.2)
            open("drained", "w").close()
        elif not os.path.exists("drained"):
            open("hurried", "w").close()

    def tell_now(self): ...

serve(Serving)
"""


@pytest.mark.parametrize(
    ("action", "left"),
    [(signal.SIG_DFL, {"drained"}), (signal.SIG_IGN, {"goes on", "drained"})],
    ids=["closed", "nohup"],
)
def test_who_loses_its_terminal_drains_and_ends(
    action: signal.Handlers, left: set[str], tmp_path: Path
) -> None:
    """Unless it was told to ignore that. The shell and the system may both say so."""
    done = subprocess.run(
        [sys.executable, "-c", SERVES],
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, action),
    )
    assert done.returncode == 0
    assert set(os.listdir(tmp_path)) == left
