"""`swarm-server` and `swarm-dht` as processes: events, signals, mistakes."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from processes import Program, ServerProgram, command_line

from swarm.cli.arguments import repeat_address_options, split_addresses
from swarm.errors import UsageError

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"
DOCUMENTED = set(re.findall(r"`(\w+)`", REFERENCE.read_text()))
NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWSuzL78axB9JMNtzLHba8xNFurupAwq8sU4YMeWZkc2om"


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command_line(program), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


# ---- arguments


def test_options_take_several_addresses() -> None:
    first, second = "/ip4/127.0.0.1/tcp/1", "/dns4/example.org/tcp/2"
    third = "/dnsaddr/example.org"
    given = ["model", "--peers", first, second, third, "--blocks", "0:1"]
    assert repeat_address_options([*given, "--listen", first, "/my/model"]) == [
        *("model", "--peers", first, "--peers", second, "--peers", third, "--blocks", "0:1"),
        *("--listen", first, "/my/model"),
    ]
    assert repeat_address_options(["--peers", "--json"]) == ["--peers", "--json"]


def test_addresses_may_be_joined_by_commas() -> None:
    assert split_addresses(["a, b", "c"]) == ("a", "b", "c")
    with pytest.raises(UsageError):
        split_addresses(["a,,b"])


@pytest.mark.parametrize("program", ["swarm-server", "swarm-client", "swarm-dht", "swarm-plan"])
def test_a_program_says_which_version_it_is(program: str) -> None:
    done = run(program, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"swarm \S+, protocol 3\n", done.stdout)


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["--blocks", "9:3"], 2, "9:3"),
        (["--blocks", "0:31"], 2, "0:30"),
        (["--blocks", "0:1", "--peers", NOBODY], 1, "cannot reach"),
        (["--peers", "nonsense"], 2, "nonsense"),
        (["--listen", "/ip4/0.0.0.0/udp/31330"], 2, "write /tcp/31330 or /udp/31330/quic-v1"),
        (["--dtype", "int3"], 2, "float32"),
        (["--cache-tokens", "63"], 2, "--cache-tokens"),
        (["--threads", "many"], 2, "--threads"),
        (["--no-such-option"], 2, "--no-such-option"),
        (["--watch", "--json-logs"], 2, "choose one"),
        (["--max-memory", "lots"], 2, "8GiB"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, hint: str, tmp_path: Path
) -> None:
    loopback = ["--listen", "/ip4/127.0.0.1/tcp/0"]
    done = run("swarm-server", *loopback, *arguments, XDG_DATA_HOME=str(tmp_path))
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and hint in lines[0]
    assert "Traceback" not in done.stdout


def test_with_json_logs_the_mistake_is_an_event() -> None:
    done = run("swarm-server", "--json-logs", "--blocks", "9:3")
    [event] = [json.loads(line) for line in done.stdout.splitlines()]
    assert event["event"] == "error" and "9:3" in event["message"]
    assert done.returncode == 2


# ---- life


def test_a_server_says_what_it_does_and_ends_at_sigterm(
    start_server: Callable[..., ServerProgram],
) -> None:
    server = start_server("0:2", options=["--stats", "0.2", "--cache-tokens", "256"])
    online = server.wait_online()
    assert online["blocks"] == "0:2"
    assert online["address"] == server.address()
    stats = server.wait_for("stats")
    assert stats["cache_tokens_free"] == stats["cache_tokens_total"] == 256
    children = psutil.Process(server.pid).children(recursive=True)
    assert children
    assert server.stop() == 0
    assert not [child for child in children if child.is_running()]
    names = [event["event"] for event in server.events]
    assert names[-2:] == ["draining", "stopped"]
    assert names.index("listening") < names.index("online")
    assert {"loading", "notice"} <= set(names)
    for event in [*server.events, *stats["peers"]]:
        assert event.keys() <= DOCUMENTED
    assert set(names) <= DOCUMENTED


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.matrix)]
)
def test_a_signal_while_loading_ends_it_cleanly(
    start_server: Callable[..., ServerProgram], number: signal.Signals
) -> None:
    server = start_server("0:30")
    server.wait_for("listening")
    server.process.send_signal(number)
    assert server.process.wait(60) == 0
    assert not server.last_words()
    assert "online" not in [event["event"] for event in server.events]


def test_a_server_joins_by_a_bootstrap_peer(
    start_server: Callable[..., ServerProgram],
    start_program: Callable[[str, list[str]], Program],
    tmp_path: Path,
) -> None:
    command = [*command_line("swarm-dht"), "--listen", "/ip4/127.0.0.1/tcp/0", "--json-logs"]
    peer = start_program("dht", [*command, "--identity", str(tmp_path / "key")])
    address = str(peer.wait_for("listening")["address"])
    start_server("0:1", peers=[address], options=["--cache-tokens", "64"]).wait_online()
    assert peer.stop() == 0
    assert [event["event"] for event in peer.events] == ["listening", "stopped"]


def test_people_get_lines_and_a_table_instead(tmp_path: Path) -> None:
    command = [*command_line("swarm-server"), "--listen", "/ip4/127.0.0.1/tcp/0"]
    command += ["--blocks", "0:1", "--threads", "1", "--identity", str(tmp_path / "key")]
    command += ["--max-memory", "128MiB", "--max-upload-mbit", "2.5", "--name", "Ölmühle"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("└"):  # the end of a table: one when it is online, one when asked
                tables = sum(line.startswith("└") for line in lines)
                process.send_signal(signal.SIGUSR1 if tables == 1 else signal.SIGINT)
        assert process.wait(60) == 0
    text = "".join(lines)
    [memory] = [line for line in lines if line.startswith("memory: ")]
    assert "134 MB are lent (--max-memory); a block takes 14 MB, blocks 0:1 (as asked)" in memory
    title = "Ölmühle: blocks 0:1 of 30 of SmolLM2-135M-Instruct, float32 on cpu, online for "
    assert text.count(title) == 2
    assert text.count("│ 0.00 of 2.5 Mbit/s") == text.count("│ 0 open, 0 in line") == 2
    assert "swarm-server --peers /ip4/127.0.0.1/tcp/" in text
    assert "online with blocks 0:1 of 30 of SmolLM2-135M-Instruct" in text
    assert lines[-1] == "stopped\n"
