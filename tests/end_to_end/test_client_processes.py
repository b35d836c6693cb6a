"""Real processes of users and volunteers: suspended, without their daemon, asked to leave."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from faults import daemon_of
from generations import plain_ids
from processes import Program, ServerProgram
from tiny_pairs import some_ids

from swarm.wire.heartbeat import SILENCE_S

TOKENS = 300
CLIENT = """
import json, sys, torch
from transformers import StoppingCriteria
from swarm import AutoModelForCausalLM

class Say(StoppingCriteria):
    def __call__(self, ids, scores, **_):
        print(json.dumps({"event": "token"}), flush=True)
        return torch.zeros(ids.shape[0], dtype=torch.bool)

folder, address, prompt, tokens = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, initial_peers=[address])
ids = torch.tensor([json.loads(prompt)])
found = model.generate(
    ids, attention_mask=torch.ones_like(ids), do_sample=False, stopping_criteria=[Say()],
    max_new_tokens=int(tokens), min_new_tokens=int(tokens),
)
print(json.dumps({"event": "done", "ids": found[0].tolist()}), flush=True)
model.close()
"""


@pytest.fixture(scope="module")
def servers(tiny_llama: Path) -> Iterator[list[ServerProgram]]:
    """One of the first blocks, two of the others; they would wait ten minutes for sessions."""
    with ExitStack() as stack:
        started: list[ServerProgram] = []
        for span in ("0:2", "2:4", "2:4"):
            server = ServerProgram(
                blocks=span,
                model=str(tiny_llama),
                peers=[started[0].address()] if started else [],
                options=["--cache-tokens", "1024", "--drain-timeout", "600"],
            )
            started.append(stack.enter_context(server))
        for server in started:
            server.wait_online()
        yield started


class Client(Program):
    """Generates `TOKENS` ids from a prompt and says each token."""

    def __init__(self, folder: Path, servers: list[ServerProgram], seed: int = 0) -> None:
        self.prompt = some_ids(9, seed=seed)
        words = [sys.executable, "-c", CLIENT, str(folder), servers[0].address()]
        super().__init__("client", [*words, json.dumps(self.prompt[0].tolist()), str(TOKENS)])

    @property
    def tokens(self) -> int:
        return sum(event["event"] == "token" for event in self.events)

    def wait_for_tokens(self, count: int) -> None:
        for _ in range(count):
            self.wait_for("token")

    def check(self, folder: Path) -> None:
        """To its end: the ids of an undisturbed generation."""
        found = self.wait_for("done")["ids"]
        assert found == plain_ids(folder, self.prompt, TOKENS)[0].tolist()
        assert self.tokens == TOKENS
        assert self.process.wait(60) == 0, self.last_words()


def test_a_client_that_is_suspended_goes_on_when_it_wakes_up(
    servers: list[ServerProgram], tiny_llama: Path
) -> None:
    """Longer than its links live without a word."""
    with Client(tiny_llama, servers) as client:
        client.wait_for_tokens(5)
        client.process.send_signal(signal.SIGSTOP)
        before = client.tokens
        time.sleep(SILENCE_S + 2.0)
        assert client.tokens <= before + 20 < TOKENS
        client.process.send_signal(signal.SIGCONT)
        client.check(tiny_llama)


def test_a_client_whose_daemon_and_address_change_goes_on(
    servers: list[ServerProgram], tiny_llama: Path
) -> None:
    with Client(tiny_llama, servers, seed=1) as client:
        client.wait_for_tokens(5)
        daemon = daemon_of(client)
        daemon.kill()
        client.check(tiny_llama)
        assert not daemon.is_running() or daemon.status() == psutil.STATUS_ZOMBIE


def test_a_server_that_is_asked_to_leave_hands_over_and_a_second_signal_ends_one_at_once(
    servers: list[ServerProgram], tiny_llama: Path
) -> None:
    """Neither of two clients fails or gets a token twice; nobody can take over from the other."""
    with Client(tiny_llama, servers) as one, Client(tiny_llama, servers, seed=1) as other:
        for client in (one, other):
            client.wait_for_tokens(5)
        leaving = servers[1]
        leaving.process.send_signal(signal.SIGTERM)
        one.check(tiny_llama)
        other.check(tiny_llama)
        assert leaving.process.wait(60) == 0, leaving.last_words()
    with Client(tiny_llama, servers) as client:
        client.wait_for_tokens(5)
        alone = servers[2]
        alone.process.send_signal(signal.SIGTERM)
        alone.wait_for("draining")
        alone.process.send_signal(signal.SIGTERM)
        assert alone.process.wait(60) == 0, alone.last_words()
