"""A generation goes on with exactly the ids of an undisturbed one when its servers are lost."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import Fault, inflict_between
from generations import generate, plain_generate, plain_ids
from tiny_pairs import some_ids

from swarm.errors import MissingBlocksError
from swarm.server.server import Server
from swarm.testing import LocalSwarm

TOKENS = 24
SPANS = ("0:1", "1:3", "3:4")


@pytest.fixture
def swarm(tiny_llama: Path) -> Iterator[LocalSwarm]:
    with LocalSwarm(tiny_llama, *SPANS, *SPANS, drain_timeout_s=60) as swarm:
        yield swarm
        swarm.wait_until_free()


def hop(swarm: LocalSwarm, model: Any, index: int) -> Server:
    """The server of a hop of the session that computes, or computed last."""
    peer = model.route[index].peer
    return next(server for server in swarm.servers if server.peer_id == peer)


def kill(swarm: LocalSwarm, model: Any, *hops: int) -> None:
    for server in [hop(swarm, model, index) for index in hops]:
        swarm.kill(server)


@pytest.mark.parametrize(("index", "at"), [(0, 0), (1, 1), (2, 20), (1, TOKENS - 1)])
def test_a_killed_hop_is_replaced(swarm: LocalSwarm, tiny_llama: Path, index: int, at: int) -> None:
    ids = some_ids(9)
    with swarm.client() as model:
        route: list[Any] = []

        def event() -> None:
            route.extend(model.route)
            kill(swarm, model, index)

        found = generate(model, ids, TOKENS, {at: event})
        assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))
        changed = [old != new for old, new in zip(route, model.route, strict=True)]
        assert changed == [number == index for number in range(3)]
        # The same client's next generation, and a fresh one's, begin on the servers that live.
        assert torch.equal(generate(model, ids, 4), plain_ids(tiny_llama, ids, 4))
    with swarm.client(window=4) as fresh:
        assert torch.equal(generate(fresh, ids, 4), plain_ids(tiny_llama, ids, 4))


def test_two_hops_at_once_and_then_one_that_replaced_them(
    swarm: LocalSwarm, tiny_llama: Path
) -> None:
    ids = some_ids(9)
    for span in SPANS[:2]:
        swarm.start(span)
    events = {
        5: lambda: kill(swarm, model, 0, 1),
        12: lambda: kill(swarm, model, 1),
        13: lambda: kill(swarm, model, 2),
    }
    with swarm.client() as model:
        found = generate(model, ids, TOKENS, events)
    assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))


@pytest.mark.parametrize("others", [("1:2", "2:3"), ("0:4",), ("0:2", "1:4"), ("0:3", "3:4")])
def test_others_take_over_whatever_their_boundaries(
    tiny_llama: Path, others: tuple[str, ...]
) -> None:
    """Two servers, parts of longer ones, or, where nothing fits, a wholly different route."""
    ids = some_ids(9)
    with LocalSwarm(tiny_llama, *SPANS) as swarm, swarm.client() as model:

        def event() -> None:
            kill(swarm, model, 1)
            for span in others:
                swarm.start(span)

        found = generate(model, ids, TOKENS, {10: event})
        assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))
        swarm.wait_until_free()


def test_in_the_middle_of_a_prompt(swarm: LocalSwarm, tiny_llama: Path) -> None:
    ids = some_ids(300)
    done = threading.Event()

    def progress(tokens: int, total: int) -> None:
        if tokens > total // 4:
            done.set()

    def watch() -> None:
        done.wait(60)
        kill(swarm, model, 1)

    with swarm.client(prefill_chunk_tokens=16, window=2) as model:
        model._remote.open_chain = _with_progress(model._remote.open_chain, progress)
        killer = threading.Thread(target=watch)
        killer.start()
        found = generate(model, ids, 4, {0: lambda: None})
        killer.join(60)
    assert torch.equal(found, plain_ids(tiny_llama, ids, 4))


def _with_progress(open_chain: Any, progress: Any) -> Any:
    def opened(*arguments: Any) -> Any:
        chain = open_chain(*arguments)
        chain._on_prefill = progress
        return chain

    return opened


@pytest.mark.parametrize("seconds", [3.0, pytest.param(10.0, marks=pytest.mark.matrix)])
def test_a_gap_that_closes_later(tiny_llama: Path, seconds: float) -> None:
    ids = some_ids(9)
    with LocalSwarm(tiny_llama, *SPANS) as swarm, swarm.client() as model:
        starters = []

        def event() -> None:
            kill(swarm, model, 1)
            starters.append(threading.Timer(seconds, lambda: swarm.start("1:3")))
            starters[0].start()

        found = generate(model, ids, TOKENS, {10: event})
        starters[0].join()
        assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))


def test_without_a_replica_the_missing_blocks_are_named_in_time(tiny_llama: Path) -> None:
    with LocalSwarm(tiny_llama, *SPANS) as swarm, swarm.client(repair_timeout_s=1.0) as model:
        with pytest.raises(MissingBlocksError) as missing:
            generate(model, some_ids(9), TOKENS, {5: lambda: kill(swarm, model, 1)})
        assert missing.value.blocks == ("1:3",)
        swarm.wait_until_free()


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=["beams", "samples", "candidates"],
)
def test_ways_of_generating(swarm: LocalSwarm, tiny_llama: Path, options: dict[str, Any]) -> None:
    ids = some_ids(9)
    with swarm.client() as model:
        events = {7: lambda: kill(swarm, model, 1), 13: lambda: kill(swarm, model, 2)}
        torch.manual_seed(5)
        found = generate(model, ids, TOKENS, events, **options)
    torch.manual_seed(5)
    assert torch.equal(found, plain_generate(tiny_llama, ids, TOKENS, **options))


def test_a_padded_batch(swarm: LocalSwarm, tiny_llama: Path) -> None:
    ids, mask = some_ids(9, rows=3), torch.ones((3, 9), dtype=torch.long)
    mask[0, :4] = mask[2, :2] = 0
    with swarm.client() as model:
        events = {7: lambda: kill(swarm, model, 0), 13: lambda: kill(swarm, model, 2)}
        found = generate(model, ids, TOKENS, events, attention_mask=mask)
    assert torch.equal(found, plain_generate(tiny_llama, ids, TOKENS, attention_mask=mask))


def test_a_chat_that_rests_meanwhile(swarm: LocalSwarm, tiny_llama: Path) -> None:
    ids, more = some_ids(9), some_ids(5, seed=3)
    with swarm.client(link_grace_s=1.0) as model, model.session(max_length=60):
        first = generate(model, ids, 6)
        kill(swarm, model, 1)
        time.sleep(1.5)
        kill(swarm, model, 0)
        both = torch.cat([first, more], dim=1)
        second = generate(model, both, 6)
    assert torch.equal(second, plain_ids(tiny_llama, both, 6))


def test_a_leaving_server_hands_its_sessions_over(swarm: LocalSwarm, tiny_llama: Path) -> None:
    """Eight sessions; none fails, and none computes a token twice for its user."""
    prompts = [some_ids(9 + number, seed=number) for number in range(8)]
    found: dict[int, torch.Tensor] = {}
    all_run = threading.Barrier(9)

    def work(number: int) -> None:
        found[number] = generate(model, prompts[number], TOKENS, {5: all_run.wait})

    with swarm.client() as model:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        all_run.wait(60)
        leaving = swarm.servers[1]
        swarm.stop(leaving)
        for thread in threads:
            thread.join(60)
        assert leaving.peer_id not in {hop.peer for hop in model.route}
    for number, ids in enumerate(prompts):
        assert torch.equal(found[number], plain_ids(tiny_llama, ids, TOKENS))


def test_a_backup_that_was_given_up_is_replaced_by_the_clients_inputs(tiny_llama: Path) -> None:
    """What is evicted is counted; a hop behind is refilled from farther back."""
    ids = some_ids(9)
    with (
        LocalSwarm(tiny_llama, *SPANS, *SPANS, backup_memory=0) as swarm,
        swarm.client() as model,
    ):
        found = generate(model, ids, TOKENS, {10: lambda: kill(swarm, model, 2)})
        assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))
        assert {status["backup_bytes"] for status in swarm.statuses()} == {0}


def test_a_frozen_or_cut_off_hop_is_replaced(swarm: LocalSwarm, tiny_llama: Path) -> None:
    """Nothing comes from it any more, and nothing says so."""
    ids = some_ids(9)
    with swarm.client() as model:
        frozen: list[Server] = []

        def freeze() -> None:
            frozen.append(hop(swarm, model, 1))
            swarm.partition(frozen[0])

        found = generate(model, ids, TOKENS, {12: freeze})
        assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))
        assert frozen[0].peer_id not in {one.peer for one in model.route}
        swarm.heal(frozen[0])


def test_a_session_moves_away_from_a_link_that_is_only_late(
    swarm: LocalSwarm, tiny_llama: Path
) -> None:
    """The link lives, and is not torn down; the server behind it is not left out later."""
    ids = some_ids(9)
    with swarm.client() as model:
        route: list[Any] = []

        def delay() -> None:
            route.extend(model.route)
            one, other = hop(swarm, model, 0), hop(swarm, model, 1)
            streams.extend(links())
            inflict_between(swarm, one, other, Fault.SLOW_LINK)

        def links() -> list[int]:
            return [link.streams for link in map(client._links.stats, client._links.peers())]

        streams: list[int] = []
        client = model._remote.close.__self__.get()[1]
        found = generate(model, ids, TOKENS, {12: delay})
        assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))
        assert model.route != tuple(route)
        assert set(streams) == set(links()) == {1}
        swarm.wait_until(lambda: not client.in_trouble())


def test_while_other_clients_prompts_are_computed(swarm: LocalSwarm, tiny_llama: Path) -> None:
    ids, prompt = some_ids(9), some_ids(300, seed=7)
    first, errors, stop = plain_ids(tiny_llama, prompt, 1), [], threading.Event()

    def work() -> None:
        with swarm.client(window=4) as other:
            while not stop.is_set():
                if not torch.equal(generate(other, prompt, 1), first):
                    errors.append("another id")

    thread = threading.Thread(target=work)
    thread.start()
    with swarm.client() as model:
        found = generate(model, ids, TOKENS, {7: lambda: kill(swarm, model, 1)})
    stop.set()
    thread.join(60)
    assert torch.equal(found, plain_ids(tiny_llama, ids, TOKENS))
    assert not errors
    assert not thread.is_alive()
