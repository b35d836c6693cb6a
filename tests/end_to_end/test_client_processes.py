"""Real processes of users and volunteers: frozen, killed, suspended, without their daemon, asked to
leave."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import torch
from faults import Fault, daemon_of, inflict, thaw
from generations import generate, plain_ids
from processes import Program, ServerProgram
from tiny_pairs import joined_by, some_ids

from swarm import ClientSettings
from swarm.errors import MissingBlocksError
from swarm.wire.heartbeat import SILENCE_S

Events = Mapping[int, Callable[[], object]]
TOKENS = 300
CLIENT = """
import json, sys, torch
from transformers import StoppingCriteria
from swarm import AutoModelForCausalLM

class Say(StoppingCriteria):
    def __call__(self, ids, scores, **_):
        print(json.dumps({"event": "token"}), flush=True)
        return torch.zeros(ids.shape[0], dtype=torch.bool)

folder, address, tokens = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, initial_peers=[address])
for prompt in sys.stdin:
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
    """Two of each half, in this file's order; a server that is gone for good is taken out. They
    would wait ten minutes for sessions."""
    with ExitStack() as stack:
        started: list[ServerProgram] = []
        for span in ("0:2", "2:4", "0:2", "2:4"):
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
    """Generates `TOKENS` ids from each prompt that it is told, and says each token."""

    def __init__(self, name: str, folder: Path, address: str) -> None:
        super().__init__(name, [sys.executable, "-c", CLIENT, str(folder), address, str(TOKENS)])

    def begin(self, seed: int) -> None:
        """Some tokens of the answer are there afterwards."""
        self.prompt = some_ids(9, seed=seed)
        self._before = len(self.events)
        self.send_line(json.dumps(self.prompt[0].tolist()))
        for _ in range(5):
            self.wait_for("token")

    @property
    def tokens(self) -> int:
        """Of the answer that was begun last."""
        return sum(event["event"] == "token" for event in self.events[self._before :])

    def check(self, folder: Path) -> None:
        """To the answer's end: the ids of an undisturbed generation."""
        found = self.wait_for("done")["ids"]
        assert found == plain_ids(folder, self.prompt, TOKENS)[0].tolist()
        assert self.tokens == TOKENS

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0, self.last_words()


@pytest.fixture(scope="module")
def clients(servers: list[ServerProgram], tiny_llama: Path) -> Iterator[list[Client]]:
    """Two; whatever has happened to them, they end as if nothing had."""
    address = servers[-1].address()
    with ExitStack() as stack:
        started = [
            stack.enter_context(Client(name, tiny_llama, address)) for name in ("one", "other")
        ]
        yield started
        for client in started:
            client.end()


def test_a_frozen_server_and_then_a_killed_one(
    servers: list[ServerProgram], tiny_llama: Path
) -> None:
    """The same client's next generation goes on with who is left."""
    ids = some_ids(9)
    with joined_by(servers[-1].address(), tiny_llama) as model:

        def check(tokens: int, events: Events | None = None) -> None:
            found = generate(model, ids, tokens, events)
            assert torch.equal(found, plain_ids(tiny_llama, ids, tokens))

        def hit(index: int, fault: Fault) -> None:
            peer = model.route[index].peer
            hit_ones.append(next(one for one in servers if one.wait_online()["peer"] == peer))
            inflict(hit_ones[-1], fault)

        hit_ones: list[ServerProgram] = []
        check(24, {6: lambda: hit(1, Fault.FREEZE)})
        check(4)
        thaw(hit_ones[0])
        check(24, {6: lambda: hit(0, Fault.KILL)})
        check(4)
    servers.remove(hit_ones[1])


def test_a_client_that_is_suspended_goes_on_when_it_wakes_up(
    clients: list[Client], tiny_llama: Path
) -> None:
    """Longer than its links live without a word."""
    client = clients[0]
    client.begin(seed=0)
    client.process.send_signal(signal.SIGSTOP)
    before = client.tokens
    time.sleep(SILENCE_S + 2.0)
    assert client.tokens <= before + 20 < TOKENS
    client.process.send_signal(signal.SIGCONT)
    client.check(tiny_llama)


def test_a_client_whose_daemon_and_address_change_goes_on(
    clients: list[Client], tiny_llama: Path
) -> None:
    client = clients[1]
    client.begin(seed=1)
    daemon = daemon_of(client)
    daemon.kill()
    client.check(tiny_llama)
    # The answer may have been at its end already, and who is killed is gone soon, not at once.
    with suppress(psutil.NoSuchProcess):
        while daemon.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.02)


def test_a_server_that_is_asked_to_leave_hands_over_and_a_second_signal_ends_one_at_once(
    servers: list[ServerProgram], clients: list[Client], tiny_llama: Path
) -> None:
    """Neither of two clients fails or gets a token twice; nobody can take over from the other."""
    leaving, alone = (server for server in servers if server.blocks == "2:4")
    for seed, client in enumerate(clients):
        client.begin(seed)
    leaving.process.send_signal(signal.SIGTERM)
    for client in clients:
        client.check(tiny_llama)
    assert leaving.process.wait(60) == 0, leaving.last_words()

    def insist() -> None:
        alone.process.send_signal(signal.SIGTERM)
        alone.wait_for("draining")
        alone.process.send_signal(signal.SIGTERM)
        assert alone.process.wait(60) == 0, alone.last_words()

    settings = ClientSettings(repair_timeout_s=1.0)
    with (
        joined_by(servers[-1].address(), tiny_llama, settings=settings) as model,
        pytest.raises(MissingBlocksError),
    ):
        generate(model, some_ids(9), 24, {5: insist})
