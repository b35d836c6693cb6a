"""All ways in which Python code comes to a swarm: a bootstrap peer, loops, threads, pipelines."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from processes import Program, command_line
from tiny_pairs import (
    greedy,
    joined_by,
    plain_model,
    some_ids,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, StoppingCriteria, pipeline

from swarm import AutoModelForCausalLM
from swarm.errors import PeerError, SessionError
from swarm.testing import LocalSwarm

TOKENS = 16


@pytest.fixture(scope="module")
def plain(tiny_llama: Path) -> Any:
    return plain_model(tiny_llama)


def daemons() -> dict[int, psutil.Process]:
    """The libp2p daemons of this process."""
    found = psutil.Process().children(recursive=True)
    return {one.pid: one for one in found if "p2pd" in one.name()}


def test_by_a_bootstrap_peer_without_blocks(
    tiny_llama: Path,
    plain: Any,
    start_program: Callable[[str, list[str]], Program],
    tmp_path: Path,
) -> None:
    command = [*command_line("swarm-dht"), "--listen", "/ip4/127.0.0.1/tcp/0", "--json-logs"]
    bootstrap = start_program("dht", [*command, "--identity", str(tmp_path / "key")])
    address = str(bootstrap.wait_for("listening")["address"])
    with (
        LocalSwarm(tiny_llama, "0:3", "3:4", loopback=True, peers=(address,)),
        joined_by(address, tiny_llama) as model,
    ):
        expected = greedy(plain, some_ids(7), TOKENS)
        assert torch.equal(greedy(model, some_ids(7), TOKENS), expected)


def test_all_of_it_inside_a_running_loop(
    tiny_llama: Path, loopback_swarm: LocalSwarm, plain: Any
) -> None:
    """As in a notebook, where the loop runs while a cell does."""

    async def cells() -> torch.Tensor:
        ticking = asyncio.create_task(asyncio.sleep(3600))
        model = AutoModelForCausalLM.from_pretrained(
            tiny_llama, initial_peers=[loopback_swarm.address]
        )
        try:
            with model.session(max_length=64):
                greedy(model, some_ids(7), 4)
                return greedy(model, some_ids(7), TOKENS)
        finally:
            model.close()
            ticking.cancel()

    assert torch.equal(asyncio.run(cells()), greedy(plain, some_ids(7), TOKENS))


def answered_in_two_threads(answer: Callable[[torch.Tensor], torch.Tensor], plain: Any) -> None:
    """Both threads' answers are what the whole model says."""
    prompts = [some_ids(9, seed=seed) for seed in range(2)]
    with ThreadPoolExecutor(len(prompts)) as threads:
        for ids, found in zip(prompts, threads.map(answer, prompts), strict=True):
            assert torch.equal(found, greedy(plain, ids, TOKENS))


def test_two_threads_with_models_of_their_own(
    tiny_llama: Path, loopback_swarm: LocalSwarm, plain: Any
) -> None:
    def answer(ids: torch.Tensor) -> torch.Tensor:
        with loopback_swarm.client() as model:
            return greedy(model, ids, TOKENS)

    answered_in_two_threads(answer, plain)


def test_two_threads_with_sessions_of_one_model(loopback_model: Any, plain: Any) -> None:
    def answer(ids: torch.Tensor) -> torch.Tensor:
        with loopback_model.session(max_length=64):
            greedy(loopback_model, ids, 5)
            return greedy(loopback_model, ids, TOKENS)

    answered_in_two_threads(answer, plain)


def test_a_pipeline_with_a_batch(loopback_model: Any, plain: Any) -> None:
    words = {f"w{number}": number for number in range(96)}
    backend = Tokenizer(WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="w0", eos_token="w2", padding_side="left"
    )
    prompts = ["w5 w6 w7", "w8", "w10 w11 w12 w13 w14", "w20 w21"]
    answers = [
        pipeline("text-generation", model=one, tokenizer=tokenizer, batch_size=4)(
            prompts, max_new_tokens=TOKENS, do_sample=False
        )
        for one in (plain, loopback_model)
    ]
    assert answers[0] == answers[1]
    assert len({answer[0]["generated_text"] for answer in answers[1]}) == len(prompts)


class KillAt(StoppingCriteria):  # type: ignore[misc]
    """Kills a process once, when so many tokens are there; stops nothing."""

    def __init__(self, length: int, victims: list[psutil.Process]) -> None:
        self._length = length
        self.victims = victims

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if input_ids.shape[1] >= self._length and self.victims:
            victim = self.victims.pop()
            victim.kill()
            victim.wait(10)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def test_the_clients_own_daemon_is_killed(tiny_llama: Path, plain: Any) -> None:
    expected = greedy(plain, some_ids(7), 40)
    with LocalSwarm(tiny_llama, "0:2", "2:4", loopback=True) as swarm:
        before = daemons()
        with swarm.client() as model:
            assert torch.equal(greedy(model, some_ids(7), 40), expected)
            [first] = daemons().keys() - before.keys()
            psutil.Process(first).kill()
            # Between two generations it is not noticed.
            assert torch.equal(greedy(model, some_ids(7), 40), expected)
            [second] = daemons().keys() - before.keys()
            assert second != first
            # In the middle of one, it goes on or says why not; and the next one is right.
            kill = KillAt(20, [psutil.Process(second)])
            with contextlib.suppress(SessionError, PeerError):
                found = model.generate(
                    some_ids(7),
                    max_new_tokens=40,
                    min_new_tokens=40,
                    do_sample=False,
                    stopping_criteria=[kill],
                )
                assert torch.equal(found, expected)
            assert not kill.victims
            assert torch.equal(greedy(model, some_ids(7), 40), expected)
            swarm.wait_until_free()
        assert daemons().keys() == before.keys()
