"""Outputs that cannot be written: a full disk, a closed stream, a reader that has gone."""

import os
import resource
import subprocess
from pathlib import Path

import pytest
from processes import command_line

from swarm.cli.batch_files import Result, ResultFile
from swarm.cli.errors import run
from swarm.errors import UsageError

PLAN = """
model: {name: mine, blocks: 4, block_gb: 0.001}
machines: [{name: a, memory_gb: 0.01, decode_ms_per_block: 1}]
"""


def result(index: int) -> Result:
    return Result(index, None, "text", [1, 2, 3], 0.1, 2.0, None, "0" * 16)


@pytest.fixture
def plan(tmp_path: Path) -> list[str]:
    """A quick command that prints something."""
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    return [*command_line("swarm-plan"), "place", str(file), "--json", "--time-limit", "0"]


@pytest.mark.parametrize("asked", ["help", "answer"])
def test_a_full_disk_is_one_line(plan: list[str], asked: str) -> None:
    command = plan if asked == "answer" else [*command_line("swarm-client"), "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no space is left")


def test_who_reads_no_more_is_told_nothing(plan: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(plan, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [["generate", "--peers", "x"], ["--no-such-option"]])
def test_a_mistake_keeps_its_exit_code_where_it_cannot_be_told(arguments: list[str]) -> None:
    command = [*command_line("swarm-client"), *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stderr=full, timeout=60)
    assert done.returncode == 2


def test_a_broken_pipe_of_a_server_is_not_its_output_and_is_told() -> None:
    """As one to its daemon: what it prints ends no server."""
    told: list[str] = []

    def command() -> None:
        raise BrokenPipeError("to the daemon")

    with pytest.raises(SystemExit) as end:
        run(command, told.append)
    assert end.value.code == 1
    (line,) = told
    assert "to the daemon" in line


def test_closed_streams_are_like_the_null_device(plan: list[str]) -> None:
    shell = ["/bin/sh", "-c", 'exec "$@" <&- >&-', "sh", *plan]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_answers_that_find_no_room_on_the_disk(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    results = ResultFile(output, ["0" * 16] * 3)
    results.add(result(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (output.stat().st_size + 10, hard))
    try:
        with pytest.raises(UsageError, match="cannot be written"):
            results.add(result(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        results.close()
    assert results.done == {0}
    again = ResultFile(output, ["0" * 16] * 3)  # drops the line that is half there
    again.add(result(1))
    again.finish()
    assert [line[:11] for line in output.read_text().splitlines()] == ['{"index":0,', '{"index":1,']
