"""Links under resets, partitions, stalls, losses and simultaneous dials, in any order."""

import asyncio
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st
from link_peers import ANNA, BERT, CARL, Peer

from swarm.scheduling.classes import ServiceClass
from swarm.spans import PeerId
from swarm.wire.dialling import ATTEMPT_S
from swarm.wire.memory import MemoryNetworkHub, Path
from swarm.wire.virtual_time import run

PEERS = (ANNA, BERT, CARL)
SESSIONS = (b"", b"one", b"two")
pairs = st.sampled_from([(a, b) for a in PEERS for b in PEERS if a != b])
sends = st.tuples(
    st.just("send"),
    pairs,
    st.sampled_from(ServiceClass),
    st.sampled_from(SESSIONS),
    st.sampled_from([0, 100, 4096, 65_536, 300_000]),
)
steps = st.one_of(
    sends,
    sends,
    sends,
    st.tuples(st.just("connect both"), pairs),
    st.tuples(st.just("sleep"), st.sampled_from([0.001, 0.02, 0.06, 0.5])),
    st.tuples(st.just("reset"), pairs),
    st.tuples(st.just("partition"), pairs, st.sampled_from([0.1, 2.0, 4.5, 6.0])),
    st.tuples(st.just("stall"), pairs, st.sampled_from([0.1, 2.0, 4.5])),
)
paths = st.builds(
    Path,
    delay_s=st.sampled_from([0.0, 0.001, 0.05, 0.2]),
    bandwidth_bytes_per_s=st.sampled_from([2e5, 1e7, float("inf")]),
    buffer_bytes=st.sampled_from([10_000, 65_536, 1_000_000]),
    loss=st.sampled_from([0.0, 0.2]),
    shortest_piece=st.sampled_from([None, 1, 1000]),
)


@settings(max_examples=150)
@given(st.integers(0, 2**32), paths, st.lists(steps, min_size=5, max_size=40))
def test_every_message_once_whole_and_in_order(
    seed: int, path: Path, script: list[tuple[Any, ...]]
) -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(seed, path)
        async with Peer(hub, ANNA) as anna, Peer(hub, BERT) as bert, Peer(hub, CARL) as carl:
            peers = {peer.id: peer for peer in (anna, bert, carl)}
            sent: list[tuple[PeerId, PeerId, bytes, int]] = []
            for step in script:
                await act(hub, peers, sent, step)
            await asyncio.sleep(120)
            assert [peer.lost for peer in peers.values()] == [[], [], []]
            check(peers, sent)
            for peer in peers.values():
                for other in peer.links.peers():
                    stats = peer.links.stats(other)
                    assert stats is not None
                    assert stats.outstanding_bytes == stats.unfinished_bytes == 0
                    assert hub.streams(peer.id, other) == stats.lanes
                    event(f"lanes: {stats.lanes}")
                    event(f"streams of a link: {min(stats.streams, 5)}")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


async def act(
    hub: MemoryNetworkHub,
    peers: dict[PeerId, Peer],
    sent: list[tuple[PeerId, PeerId, bytes, int]],
    step: tuple[Any, ...],
) -> None:
    kind = step[0]
    if kind == "sleep":
        await asyncio.sleep(step[1])
        return
    a, b = step[1]
    if kind == "send":
        peers[a].send(b, len(sent), step[4], step[2], step[3])
        sent.append((a, b, step[3], step[4]))
    elif kind == "connect both":
        await asyncio.gather(peers[a].links.connect(b, 30), peers[b].links.connect(a, 30))
    elif kind == "reset":
        hub.reset(a, b)
    else:
        if step[2] > ATTEMPT_S:
            # Who was never met is given up as soon as a dial fails.
            await peers[a].links.connect(b, 30)
        if kind == "partition":
            hub.partition(a, b)
        else:
            hub.stall(a, b)
        await asyncio.sleep(step[2])
        hub.heal(a, b)
        await asyncio.sleep(4)  # so that a link comes back before it is cut again


def check(peers: dict[PeerId, Peer], sent: list[tuple[PeerId, PeerId, bytes, int]]) -> None:
    for peer in peers.values():
        expected = sorted(
            (sender, number, size)
            for number, (sender, to, _, size) in enumerate(sent)
            if to == peer.id
        )
        assert sorted(peer.received) == expected
        for sender in PEERS:
            for session in SESSIONS[1:]:
                order = [
                    number
                    for came_from, number, _ in peer.received
                    if came_from == sender and sent[number][2] == session
                ]
                assert order == sorted(order)
