"""The client's own end of a session: cut off, asleep, closed, interrupted, collected."""

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from generations import generate, plain_ids
from tiny_pairs import some_ids

from swarm.errors import SessionClosedError, SwarmError
from swarm.testing import LocalSwarm

TOKENS = 24
SPANS = ("0:2", "2:4")


@pytest.fixture
def swarm(tiny_llama: Path) -> Iterator[LocalSwarm]:
    """Afterwards no session, no room and no task of one is left anywhere."""
    with LocalSwarm(tiny_llama, *SPANS, *SPANS) as swarm:
        yield swarm
        swarm.wait_until_free()


def cut_off(swarm: LocalSwarm, model: Any, seconds: float) -> None:
    """Nothing reaches the client, and nothing comes from it."""
    hub = swarm._in_memory()
    peer = model._remote.close.__self__.get()[1].identity.peer_id
    swarm.call(lambda: hub.isolate(peer))
    threading.Timer(seconds, lambda: swarm.call(lambda: hub.rejoin(peer))).start()


@pytest.mark.parametrize(
    "seconds",
    [
        3.0,
        pytest.param(8.0, marks=pytest.mark.matrix),
        pytest.param(14.0, marks=pytest.mark.matrix),
    ],
)
def test_a_client_that_is_cut_off_goes_on_when_it_is_back(
    swarm: LocalSwarm, tiny_llama: Path, seconds: float
) -> None:
    """Also when its servers have given its session up."""
    ids = some_ids(9)
    with swarm.client() as model:
        found = generate(model, ids, TOKENS, {12: lambda: cut_off(swarm, model, seconds)})
    assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))


@pytest.mark.parametrize("forks", ["between two tokens", "while another thread waits"])
def test_a_fork_leaves_the_session_to_its_parent(
    swarm: LocalSwarm, tiny_llama: Path, forks: str
) -> None:
    """The child is told so, and what it collects or closes is not its own."""
    ids, codes = some_ids(9), []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            _try_as_child(model, session)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with swarm.client() as model, model.session(max_length=60) as session:
        thread, event = threading.Thread(target=fork), fork
        if forks != "between two tokens":
            event = thread.start
        found = generate(model, ids, TOKENS, {5: event})
        if thread.ident is not None:
            thread.join(60)
        assert codes == [0]
    assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))


def _try_as_child(model: Any, session: Any) -> NoReturn:
    code = 1
    signal.alarm(30)
    try:
        model(some_ids(1), past_key_values=session.cache)
    except SessionClosedError:
        session.close()
        model.close()
        code = 0
    finally:
        gc.collect()
        os._exit(code)


class StoppedError(Exception):
    """The user's own."""


def _raise() -> None:
    raise StoppedError


def test_an_interrupted_generation_frees_its_servers(swarm: LocalSwarm) -> None:
    with swarm.client() as model:
        with pytest.raises(StoppedError):
            generate(model, some_ids(9), TOKENS, {5: _raise})
        swarm.wait_until_free()


@pytest.mark.parametrize("when", ["generating", "looking for another route"])
def test_a_model_that_is_closed_by_another_thread(swarm: LocalSwarm, when: str) -> None:
    with swarm.client() as model:
        errors: list[BaseException] = []
        there = threading.Event()

        def event() -> None:
            if when != "generating":
                for server in list(swarm.servers[1::2]):
                    swarm.kill(server)
            there.set()

        def work() -> None:
            try:
                generate(model, some_ids(9), 200, {5: event})
            except SwarmError as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        there.wait(60)
        model.close()
        thread.join(60)
        assert not thread.is_alive()
        assert len(errors) == 1


def test_a_session_that_is_collected_in_any_thread(swarm: LocalSwarm) -> None:
    """Also in the loop's own thread, where nothing may wait."""
    with swarm.client() as model:
        for collect in (gc.collect, lambda: swarm.call(gc.collect), _in_a_thread(gc.collect)):
            cache = model(some_ids(5), use_cache=True).past_key_values
            assert any(status["sessions"] for status in swarm.statuses())
            cache.itself = cache
            del cache
            collect()
            swarm.wait_until_free()


def _in_a_thread(function: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()

    return run
