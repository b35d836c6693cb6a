"""Harder losses of real servers: in a prompt, several, none for a while, under other clients."""

import signal
import threading
from collections.abc import Iterator

import pytest
import torch
from faults import Fault, inflict
from generations import generate
from real_servers import LONG_PROMPT, PROMPT, Servers, check, expected_ids, plain_embedded
from same_ids import assert_same_ids

TOKENS = 24
SESSIONS = 8
pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def thirds() -> Iterator[Servers]:
    with Servers("0:10", "10:20", "20:30") as servers:
        yield servers


@pytest.mark.parametrize(
    ("others", "seconds"), [(("8:14", "14:22"), 0.0), (("10:20",), 10.0)], ids=["cut", "late"]
)
def test_others_that_come_later(others: tuple[str, ...], seconds: float) -> None:
    """Two servers with other boundaries; the same blocks, some ten seconds after the loss."""
    with (
        Servers("0:10", "10:20", "20:30", copies=1) as servers,
        servers.model(repair_timeout_s=90.0) as model,
    ):

        def start() -> None:
            for span in others:
                servers.add(span)

        timer = threading.Timer(seconds, start)

        def event() -> None:
            inflict(servers.hop(model, 1), Fault.KILL)
            timer.start()

        check(model, PROMPT, {10: event}, TOKENS)
        timer.join()
        assert len(model.route) == 2 + len(others)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("fault", [Fault.KILL, Fault.FREEZE_BOTH])
def test_in_the_middle_of_a_prompt(thirds: Servers, fault: Fault, index: int) -> None:
    thirds.make_whole()
    lost_at: list[int] = []

    def progress(done: int, total: int) -> None:
        if not lost_at and done < total:
            lost_at.append(done)
            inflict(thirds.hop(model, index), fault)

    with thirds.model(on_prefill=progress, prefill_chunk_tokens=64) as model:
        # The event at 0 lets `hop` know the route before the first call has ended.
        check(model, LONG_PROMPT, {0: lambda: None}, 4)
    assert lost_at, "the whole prompt was one piece"


def test_two_hops_at_once_and_then_their_replacement(thirds: Servers) -> None:
    thirds.make_whole()
    third = thirds.add("10:20")
    third.wait_online()

    def kill(*indices: int) -> None:
        for server in [thirds.hop(model, index) for index in indices]:
            inflict(server, Fault.KILL)

    with thirds.model() as model:
        check(
            model, PROMPT, {5: lambda: kill(0, 1), 12: lambda: kill(1), 13: lambda: kill(2)}, TOKENS
        )


@pytest.mark.parametrize("fault", [Fault.KILL, Fault.FREEZE])
def test_while_another_clients_prompts_are_computed(thirds: Servers, fault: Fault) -> None:
    thirds.make_whole()
    errors: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            with thirds.model(window=4) as other:
                while not stop.is_set():
                    check(other, LONG_PROMPT, {}, 1)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with thirds.model() as model:
            check(model, PROMPT, {7: lambda: inflict(thirds.hop(model, 1), fault)}, TOKENS)
    finally:
        stop.set()
        thread.join(120)
    assert not errors, errors
    assert not thread.is_alive()


class Count:
    """A streamer that counts what it is given."""

    def __init__(self) -> None:
        self.tokens = 0

    def put(self, ids: torch.Tensor) -> None:
        self.tokens += ids.numel()

    def end(self) -> None:
        """Nothing is left to be shown."""


@pytest.mark.parametrize("index", [0, 1])
def test_a_server_that_all_of_eight_sessions_have_to_leave(index: int) -> None:
    """None fails, none gets a token twice, and all ids are those of undisturbed ones."""
    prompts = [
        LONG_PROMPT[:, 50 * number : 50 * number + 40 + number] for number in range(SESSIONS)
    ]
    found: dict[int, torch.Tensor] = {}
    counts = [Count() for _ in prompts]
    all_run, others_are_there = threading.Barrier(SESSIONS + 1), threading.Event()
    spans = ("0:15", "15:30")

    def pause() -> None:
        all_run.wait(120)
        others_are_there.wait(120)

    with Servers(*spans, copies=1) as servers, servers.model() as model:

        def work(number: int) -> None:
            found[number] = generate(
                model, prompts[number], TOKENS, {5: pause}, streamer=counts[number]
            )

        threads = [threading.Thread(target=work, args=(number,)) for number in range(SESSIONS)]
        for thread in threads:
            thread.start()
        all_run.wait(120)
        leaving = servers.hop(model, index)
        servers.add(spans[index]).wait_online()
        others_are_there.set()
        leaving.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(120)
        assert leaving.process.wait(60) == 0, leaving.last_words()
        assert leaving.wait_online()["peer"] not in {hop.peer for hop in model.route}
    for number, ids in enumerate(prompts):
        assert_same_ids(plain_embedded(), expected_ids(ids, TOKENS), found[number])
        assert counts[number].tokens == ids.numel() + TOKENS
