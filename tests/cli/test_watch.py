"""`swarm-server --watch` at a terminal of its own."""

import os
import pty
import select
import signal
import subprocess
import time
from pathlib import Path

from processes import command_line


def test_the_live_table_of_a_real_server(tiny_llama: Path, tmp_path: Path) -> None:
    """It is drawn again in place, and Ctrl-C gives back the cursor that it has hidden."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [
            *command_line("swarm-server"),
            *(str(tiny_llama), "--blocks", "0:4", "--watch", "--threads", "1"),
            *("--listen", "/ip4/127.0.0.1/tcp/0", "--identity", str(tmp_path / "identity")),
        ],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": "120"},
    )  # fmt: skip
    os.close(theirs)
    text = b""
    deadline = time.monotonic() + 120
    try:
        interrupted = False
        while time.monotonic() < deadline:
            readable, _, _ = select.select([ours], [], [], 1.0)
            try:
                part = os.read(ours, 65536) if readable else None
            except OSError:  # the other end is closed
                break
            text += part or b""
            if not interrupted and text.count(b"cache") >= 2 and b"tokens/s" in text:
                process.send_signal(signal.SIGINT)
                interrupted = True
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    said = text.decode(errors="replace")
    assert interrupted, said
    assert process.returncode in (0, 130), said
    assert "Traceback" not in said
    assert "\x1b[?25l" in said, "the cursor is hidden while the table lives"
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")
    assert "online with blocks 0:4" in said
