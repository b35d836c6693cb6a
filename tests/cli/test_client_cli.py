"""`swarm-client` as a user runs it."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from processes import command_line

STATUS_FIELDS = {
    "peer",
    "blocks",
    "state",
    "dtype",
    "decode_ms_per_block",
    "prefill_tokens_per_s",
    "cache_tokens_free",
    "cache_tokens_total",
    "sessions",
    "queue_wait_ms",
    "streams",
    "tasks",
    "open_files",
}
REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"
DOCUMENTED = set(re.findall(r"`(\w+)`", REFERENCE.read_text()))
NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWD8th1JgGwobzvEUYGrPbkLoq4A4vutRGkuXspF7LKBBr"


def client(*arguments, stdin="", timeout_s=120):
    return subprocess.run(
        [*command_line("swarm-client"), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def assert_one_line(done, code, *words):
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peers", NOBODY, "--prompt", ""], ["prompt is empty"]),
        (["--peers", "nonsense", "--prompt", "Hi"], ["nonsense", "/ip4/"]),
        (["no-such-folder/x/y", "--peers", NOBODY, "--prompt", "Hi"], ["no-such-folder"]),
        (["--peers", NOBODY, "--prompt", "Hi", "--dtype", "int3"], ["int3", "float32"]),
        (["--peers", NOBODY, "--prompts", "a", "--output", "b", "--json"], ["--json", "--output"]),
    ],
    ids=["empty", "address", "model", "dtype", "json"],
)
def test_bad_input_of_generate(run_client, arguments, words):
    code, _, errors = run_client(["generate", *arguments])
    assert_one_line(subprocess.CompletedProcess(arguments, code, "", errors), 2, *words)


@pytest.mark.parametrize("timeout", ["inf", "1e9"])
def test_a_time_that_nobody_can_wait(run_client, timeout):
    code, _, errors = run_client(["status", "--peers", NOBODY, "--timeout", timeout])
    assert_one_line(subprocess.CompletedProcess([], code, "", errors), 2, "--timeout", "3600")


def test_nobody_at_the_address():
    done = client("generate", "--peers", NOBODY, "--prompt", "Hi")
    assert_one_line(done, 1, "cannot reach", NOBODY)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--prompt", "Hi"], ["--peers"]),
        (["generate", "--peers", NOBODY, "--prompt", "Hi", "--top-p", "3"], ["generate --help"]),
        (["generate", "--peers", NOBODY, "--prompt", "Hi", "--max-new-tokens", "0"], ["--max-new"]),
        (["generate", "--peers", NOBODY, "--prompt", "Hi", "--temperature", "inf"], ["inf"]),
        (["generate", "--peers", NOBODY, "--prompt", "Hi", "--seed", str(1 << 64)], ["seed"]),
        (["generate", "--peers", NOBODY, "--prompt", "Hi \udcff"], ["UTF-8"]),
        (["status", "--peers"], ["--peers"]),
        (["nonsense"], ["nonsense"]),
    ],
    ids=[
        "no peers",
        "top-p",
        "no tokens",
        "no number",
        "large seed",
        "no text",
        "no address",
        "no command",
    ],
)
def test_mistakes_in_options(arguments, words):
    done = client(*arguments)
    assert_one_line(done, 2, *words)
    assert len(done.stderr.splitlines()) == 1


def test_the_bare_command_helps():
    done = client()
    assert done.returncode == 0
    assert "generate" in done.stdout


def test_what_is_open_is_closed_on_the_way_out(three_servers, run_python):
    """Even if the command itself forgets it: no daemon is left (the session's end looks for it)."""
    told = run_python(
        "import sys\n"
        "from swarm.cli.errors import run_program\n"
        "from swarm.client.membership import Membership\n"
        "from swarm.client.settings import ClientSettings\n"
        "import psutil\n"
        "def app(**_):\n"
        f"    Membership([{three_servers[0].address()!r}], ClientSettings())\n"
        "    print(*(child.pid for child in psutil.Process().children()))\n"
        "run_program(app, 'program', [])"
    )
    daemons = [int(pid) for pid in told.split()]
    assert daemons
    assert not any(psutil.pid_exists(pid) for pid in daemons)


@pytest.fixture(scope="module")
def address(three_servers):
    return three_servers[0].address()


def test_json(address):
    done = client(
        *("generate", "--peers", address, "--json", "--max-new-tokens", "12"),
        *("--prompt", "The capital of France is"),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer) == {"text", "token_ids", "ttft_s", "tokens_per_s", "route"}
    assert "Paris" in answer["text"]
    assert len(answer["token_ids"]) == 12
    assert [hop["blocks"] for hop in answer["route"]] == ["0:10", "10:20", "20:30"]


def test_text_from_standard_input_up_to_a_stop(address, run_client, monkeypatch):
    def run(*stops):
        monkeypatch.setattr("sys.stdin", io.StringIO("1, 2, 3, 4, 5,"))
        arguments = ["--peers", address, "--prompt", "-", "--max-new-tokens", "24"]
        return run_client(["generate", *arguments, *stops])

    code, whole, errors = run()
    assert code == 0, errors
    assert " 8" in whole
    assert "tokens/s" in errors
    _, stopped, _ = run("--stop", " 8", "--stop", "never")
    assert stopped.removesuffix("\n") == whole.partition(" 8")[0]


def test_a_seed_repeats_a_sample(address, run_client):
    arguments = ["generate", "--peers", address, "--json", "--max-new-tokens", "12"]
    arguments += ["--prompt", "Once", "--temperature", "1.5", "--top-k", "50", "--top-p", "0.95"]
    first, second, other = (
        json.loads(run_client([*arguments, "--seed", seed])[1])["token_ids"] for seed in "112"
    )
    assert first == second != other


def test_status(address, run_client):
    done = client("status", "--peers", address, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"model", "blocks_total", "missing", "servers"}
    assert (found["blocks_total"], found["missing"]) == (30, [])
    assert [row["blocks"] for row in found["servers"]] == ["0:10", "10:20", "20:30"]
    for row in found["servers"]:
        assert DOCUMENTED >= set(row) >= STATUS_FIELDS
        assert row["state"] == "online"
        assert row["open_files"] > 0
    _, table, _ = run_client(["status", found["model"], "--peers", address])
    assert "all served" in table
    assert "10:20" in table


def test_a_status_may_take_as_long_as_its_servers_and_not_for_ever(
    address, run_client, monkeypatch
):
    monkeypatch.setattr("swarm.cli.status.ANSWER_S", 0.0)
    code, _, errors = run_client(["status", "--peers", address, "--timeout", "60"])
    assert code == 0, errors
    monkeypatch.setattr("swarm.cli.status.ANSWER_S", -5.0)
    code, _, errors = run_client(["status", "--peers", address])
    done = subprocess.CompletedProcess([], code, "", errors)
    assert_one_line(done, 1, "did not tell its status within 0 s", "--peers")


def test_status_of_a_model_that_is_not_served(address, run_client):
    code, _, errors = run_client(["status", "nothing", "--peers", address])
    done = subprocess.CompletedProcess([], code, "", errors)
    assert_one_line(done, 1, "nothing", "SmolLM2")


def read_until(stream, found, timeout_s=90):
    """What the program writes, until `found(text)`."""
    text, deadline = b"", time.monotonic() + timeout_s
    while not found(text.decode(errors="replace")):
        readable, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        part = os.read(stream.fileno(), 4096) if readable else b""
        assert part, text
        text += part
    return text.decode(errors="replace")


def test_a_chat_at_a_terminal(address):
    """Ctrl-C ends the answer and not the chat; Ctrl-D ends the chat."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command_line("swarm-client"), "chat", "--peers", address, "--max-new-tokens", "200"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    try:
        os.write(ours, b"Write a long story about a lighthouse.\n")
        begun = read_until(process.stdout, lambda text: len(text.removeprefix("> ")) > 20)
        process.send_signal(signal.SIGINT)
        begun += read_until(process.stdout, lambda text: text.endswith("\n> "))
        assert len(begun) < 400
        os.write(ours, b"Say yes.\n")
        assert read_until(process.stdout, lambda text: text.endswith("\n> "))[0].isprintable()
        os.write(ours, b"/stats\n\x04")
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    errors = errors.decode()
    assert process.returncode == 0, errors
    assert "2 turns" in errors and "tokens sent" in errors
    assert "Traceback" not in errors and "error" not in errors


def test_an_interrupted_batch(address, tmp_path):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("".join(f"{number} and {number} make\n" for number in range(200)))
    process = subprocess.Popen(
        [
            *command_line("swarm-client"),
            *("generate", "--peers", address, "--max-new-tokens", "8"),
            *("--prompts", str(prompts), "--output", str(output), "--concurrency", "3"),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not output.exists() or output.read_bytes().count(b"\n") < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert 3 <= len(found) < 200
    assert all(line["error"] is None and len(line["token_ids"]) == 8 for line in found)
    assert f"{len(found)} of 200 prompts are answered" in errors
