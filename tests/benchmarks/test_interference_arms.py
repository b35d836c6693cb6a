"""What each arm of the interference benchmark does with messages and steps."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from typing import Any

import interference_modules  # noqa: F401
import pytest
from interference_arms import (
    ARMS,
    CHOSEN,
    COMPUTE,
    ArmPlanner,
    ArrivalQueue,
    Chosen,
    patched_product,
)
from interference_streams import ArmLinks

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.cost_model import CostModel
from swarm.scheduling.fair_queue import Entry
from swarm.sessions.messages import Message, Step, Want
from swarm.spans import PeerId
from swarm.wire.memory import MemoryNetworkHub, Path
from swarm.wire.virtual_time import run

ANNA, BERT = PeerId("peer-anna"), PeerId("peer-bert")
BYTES_PER_S = 625_000.0
PROMPT_BYTES = 2_000_000
PROMPT, DECODE = bytes(16), bytes([1] * 16)


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    yield
    for field in fields(Chosen):
        setattr(CHOSEN, field.name, field.default)


def step(session: bytes, seq: int) -> Step:
    return Step(session, 0, seq, (0,), (1,), (0,), (), Want.NONE, ())


class Peer:
    def __init__(self, hub: MemoryNetworkHub, peer: PeerId) -> None:
        self.came: list[tuple[float, bytes, int, int]] = []
        self.network = hub.network(peer)
        self.links = ArmLinks(self.network, self)

    async def __aenter__(self) -> "Peer":
        await self.links.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.links.close()
        await self.network.close()

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        assert isinstance(message, Step)
        assert bytes(payload) == bytes([message.seq % 251]) * len(payload)
        now = asyncio.get_running_loop().time()
        self.came.append((now, message.session, message.seq, len(payload)))

    def on_link_lost(self, peer: PeerId, reason: str) -> None:
        raise AssertionError(reason)

    def send(self, to: PeerId, session: bytes, seq: int, size: int) -> None:
        kind = ServiceClass.PREFILL if session == PROMPT else ServiceClass.DECODE
        payload = bytes([seq % 251]) * size
        self.links.send(to, step(session, seq), (payload,), kind, session, session.hex())


async def decode_beside_a_prompt(arm: str, rounds: int = 20) -> list[float]:
    """How long each decode step takes while a prompt passes over the same path."""
    CHOSEN.arm = arm
    path = Path(delay_s=0.01, bandwidth_bytes_per_s=BYTES_PER_S)
    hub = MemoryNetworkHub(path=path)
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        stack.enter_context(patched_product(server=True))
        anna = await stack.enter_async_context(Peer(hub, ANNA))
        bert = await stack.enter_async_context(Peer(hub, BERT))
        await anna.links.connect(BERT, 5)
        for seq in range(200):  # the link learns its path
            anna.send(BERT, PROMPT, seq, 4096)
        await asyncio.sleep(3)
        anna.send(BERT, PROMPT, 200, PROMPT_BYTES)
        sent = {}
        for seq in range(rounds):
            await asyncio.sleep(0.1)
            sent[seq] = loop.time()
            anna.send(BERT, DECODE, seq, 2048)
        await asyncio.sleep(6)
        took = {seq: at - sent[seq] for at, session, seq, _ in bert.came if session == DECODE}
        prompts = [(seq, size) for _, session, seq, size in bert.came if session == PROMPT]
    # Streams of one message each may overtake each other.
    in_order = sorted(prompts) if arm == "B" else prompts
    assert in_order == [*((seq, 4096) for seq in range(200)), (200, PROMPT_BYTES)]
    assert list(took) == list(range(rounds))
    return list(took.values())


def test_first_come_first_served_makes_decode_wait_for_the_whole_prompt() -> None:
    took = run(decode_beside_a_prompt("A"))
    assert took[0] > 0.9 * PROMPT_BYTES / BYTES_PER_S


def test_the_product_makes_decode_wait_for_a_few_fragments_only() -> None:
    took = run(decode_beside_a_prompt("C"))
    # The first one finds what was sent while nobody decoded.
    assert max(took[1:]) < 0.06


def test_with_a_stream_for_each_message_all_come_whole_and_once() -> None:
    took = run(decode_beside_a_prompt("B"))
    assert len(took) == 20


def test_a_link_serves_all_arms_one_after_the_other() -> None:
    async def main() -> list[int]:
        hub = MemoryNetworkHub()
        async with AsyncExitStack() as stack:
            stack.enter_context(patched_product(server=True))
            anna = await stack.enter_async_context(Peer(hub, ANNA))
            bert = await stack.enter_async_context(Peer(hub, BERT))
            for seq, arm in enumerate(ARMS * 2):
                CHOSEN.arm = arm
                anna.send(BERT, PROMPT, seq, 300_000)
                await asyncio.sleep(1)
            return [seq for _, _, seq, _ in bert.came]

    assert run(main()) == list(range(2 * len(ARMS)))


@dataclass
class Work:
    left: int
    held: float = 0.0


def planned(compute: str, waiting: list[tuple[ServiceClass, int]]) -> list[tuple[int, int]]:
    """Which of those that wait join a pass of 512 tokens, and with how many tokens."""
    CHOSEN.compute = compute
    queue: ArrivalQueue[Any] = ArrivalQueue()
    planner = ArmPlanner(queue, CostModel(0.01, 1e5), max_tokens=512)
    for number, (kind, tokens) in enumerate(waiting):
        queue.push(Entry(Work(tokens), kind, "client", bytes([number]) * 16, tokens))
    shares = planner.plan(1.0).shares
    return [(share.entry.session[0], share.tokens) for share in shares]


MIXED = [(ServiceClass.DECODE, 1), (ServiceClass.PREFILL, 800), (ServiceClass.DECODE, 1)]


def test_compute_policies_fill_a_pass_in_their_own_order() -> None:
    assert planned("fifo", MIXED) == [(0, 1), (1, 511)]
    assert planned("prefill first", MIXED) == [(1, 512)]
    ours = planned("ours", MIXED)
    assert [session for session, _ in ours[:2]] == [0, 2]


def test_what_a_pass_did_not_take_is_taken_by_the_next_ones() -> None:
    for compute in COMPUTE:
        CHOSEN.compute = compute
        queue: ArrivalQueue[Any] = ArrivalQueue()
        planner = ArmPlanner(queue, CostModel(0.01, 1e5), max_tokens=512)
        for number, (kind, tokens) in enumerate(MIXED):
            queue.push(Entry(Work(tokens), kind, "client", bytes([number]) * 16, tokens))
        served = [0] * len(MIXED)
        for turn in range(10):
            for share in planner.plan(float(turn)).shares:
                served[share.entry.session[0]] += share.tokens
                share.entry.item.left -= share.tokens
                # What the engine does when a step's last part is computed.
                if not share.last and not share.entry.item.left:
                    queue.finish(share.entry)
        assert served == [1, 800, 1], compute
        assert not len(queue)
