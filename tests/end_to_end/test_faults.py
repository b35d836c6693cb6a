"""Real servers with the embedded model, killed, frozen and cut off: the ids stay exact."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

import faults
import pytest
import torch
from faults import FROM_OUTSIDE, Fault, inflict, thaw
from generations import generate
from processes import ServerProgram
from same_ids import assert_same_ids
from transformers import AutoModelForCausalLM as PlainAutoModel

from swarm import AutoModelForCausalLM
from swarm.errors import SessionError
from swarm.models.embedded import embedded_gguf

TOKENS = 24
PROMPT = torch.arange(500, 540)[None]
LONG_PROMPT = torch.arange(500, 1500)[None]
"""Ids of the embedded model; what they mean does not matter."""


class Servers:
    """Two servers of each span; those that were lost are replaced by `make_whole`."""

    def __init__(self, *spans: str) -> None:
        self._stack = ExitStack()
        first = self._start(spans[0])
        self.all = [first]
        self.all += [self._start(span, first.address()) for span in (*spans[1:], *spans)]
        for server in self.all:
            server.wait_online()

    def _start(self, span: str, *peers: str) -> ServerProgram:
        return self._stack.enter_context(ServerProgram(blocks=span, peers=peers))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.all:
            thaw(server)
        self._stack.close()

    def hop(self, model: Any, index: int) -> ServerProgram:
        peer = model.route[index].peer
        return next(one for one in self.all if one.wait_online()["peer"] == peer)

    def living(self) -> list[ServerProgram]:
        return [one for one in self.all if one.process.poll() is None]

    def make_whole(self) -> None:
        living = self.living()
        for server in self.all:
            thaw(server)
        self.all = [
            one if one in living else self._start(one.blocks or "", living[0].address())
            for one in self.all
        ]
        for server in self.all:
            server.wait_online()

    def model(self) -> "closing[Any]":
        address = self.living()[-1].address()
        return closing(AutoModelForCausalLM.from_pretrained(initial_peers=[address]))


@pytest.fixture(scope="module")
def plain() -> Any:
    path = embedded_gguf()
    return PlainAutoModel.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def halves() -> Iterator[Servers]:
    with Servers("0:15", "15:30") as servers:
        yield servers


@pytest.fixture(scope="module")
def thirds() -> Iterator[Servers]:
    with Servers("0:10", "10:20", "20:30") as servers:
        yield servers


def check(plain: Any, model: Any, ids: torch.Tensor, events: dict[int, Any], tokens: int) -> None:
    expected = plain.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    assert_same_ids(plain, expected, generate(model, ids, tokens, events))


def test_a_frozen_server_and_then_a_killed_one(halves: Servers, plain: Any) -> None:
    """The same client's next generation goes on with who is left."""
    with halves.model() as model:
        frozen = []

        def freeze() -> None:
            frozen.append(halves.hop(model, 1))
            inflict(frozen[0], Fault.FREEZE)

        check(plain, model, PROMPT, {6: freeze}, TOKENS)
        check(plain, model, PROMPT, {}, 4)
        thaw(frozen[0])
        check(plain, model, PROMPT, {6: lambda: inflict(halves.hop(model, 0), Fault.KILL)}, TOKENS)
        check(plain, model, PROMPT, {}, 4)


@pytest.mark.matrix
@pytest.mark.parametrize("at", [0, 1, 20, TOKENS - 1])
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("fault", FROM_OUTSIDE)
def test_every_fault_at_every_hop(
    thirds: Servers, plain: Any, fault: Fault, index: int, at: int
) -> None:
    thirds.make_whole()
    with thirds.model() as model:
        event = {at: lambda: inflict(thirds.hop(model, index), fault)}
        check(plain, model, PROMPT, event, TOKENS)


@pytest.mark.matrix
def test_two_hops_at_once_and_then_a_replacement(thirds: Servers, plain: Any) -> None:
    thirds.make_whole()
    with thirds.model() as model:

        def two() -> None:
            inflict(thirds.hop(model, 0), Fault.KILL)
            inflict(thirds.hop(model, 2), Fault.KILL)

        check(plain, model, PROMPT, {6: two}, TOKENS)


@pytest.mark.matrix
@pytest.mark.parametrize("fault", ["refuse", "crash_at_step:9", "stale_record"])
def test_servers_with_a_fault_of_their_own(halves: Servers, plain: Any, fault: str) -> None:
    """Whether or not the route begins over it, the ids are the same."""
    halves.make_whole()
    program = [sys.executable, str(Path(faults.__file__).with_name("faulty_server.py"))]
    with ServerProgram(
        blocks="0:30",
        peers=[halves.living()[0].address()],
        program=program,
        environment={"SWARM_FAULT": fault},
    ) as faulty:
        faulty.wait_online()
        with halves.model() as model:
            check(plain, model, PROMPT, {}, TOKENS)


@pytest.mark.matrix
def test_what_is_no_number_is_blamed_on_its_server() -> None:
    program = [sys.executable, str(Path(faults.__file__).with_name("faulty_server.py"))]
    with ServerProgram(
        blocks="0:30", program=program, environment={"SWARM_FAULT": "wrong_output:5"}
    ) as faulty:
        peer = faulty.wait_online()["peer"]
        address = faulty.address()
        with closing(AutoModelForCausalLM.from_pretrained(initial_peers=[address])) as model:
            with pytest.raises(SessionError) as blamed:
                generate(model, PROMPT, TOKENS)
            assert blamed.value.peer == peer
