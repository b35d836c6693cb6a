"""Real servers with the embedded model, killed, frozen and cut off: the ids stay exact."""

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import faults
import pytest
from faults import FROM_OUTSIDE, Fault, inflict, thaw
from generations import generate
from processes import ServerProgram
from real_servers import PROMPT, Servers, check

from swarm import AutoModelForCausalLM
from swarm.errors import SessionError

TOKENS = 24


@pytest.fixture(scope="module")
def halves() -> Iterator[Servers]:
    with Servers("0:15", "15:30") as servers:
        yield servers


@pytest.fixture(scope="module")
def thirds() -> Iterator[Servers]:
    with Servers("0:10", "10:20", "20:30") as servers:
        yield servers


@pytest.mark.matrix
def test_a_frozen_server_and_then_a_killed_one(halves: Servers) -> None:
    """The same client's next generation goes on with who is left."""
    with halves.model() as model:
        frozen = []

        def freeze() -> None:
            frozen.append(halves.hop(model, 1))
            inflict(frozen[0], Fault.FREEZE)

        check(model, PROMPT, {6: freeze}, TOKENS)
        check(model, PROMPT, {}, 4)
        thaw(frozen[0])
        check(model, PROMPT, {6: lambda: inflict(halves.hop(model, 0), Fault.KILL)}, TOKENS)
        check(model, PROMPT, {}, 4)


@pytest.mark.matrix
@pytest.mark.parametrize("at", [0, 1, 20, TOKENS - 1])
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("fault", FROM_OUTSIDE)
def test_every_fault_at_every_hop(thirds: Servers, fault: Fault, index: int, at: int) -> None:
    thirds.make_whole()
    with thirds.model() as model:
        event = {at: lambda: inflict(thirds.hop(model, index), fault)}
        check(model, PROMPT, event, TOKENS)


@pytest.mark.matrix
def test_two_hops_at_once_and_then_a_replacement(thirds: Servers) -> None:
    thirds.make_whole()
    with thirds.model() as model:

        def two() -> None:
            inflict(thirds.hop(model, 0), Fault.KILL)
            inflict(thirds.hop(model, 2), Fault.KILL)

        check(model, PROMPT, {6: two}, TOKENS)


@pytest.mark.matrix
@pytest.mark.parametrize("fault", ["refuse", "crash_at_step:9", "stale_record"])
def test_servers_with_a_fault_of_their_own(halves: Servers, fault: str) -> None:
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
            check(model, PROMPT, {}, TOKENS)


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
