"""Servers that choose their blocks: joining together, measuring distances, carrying out moves."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, cast

import pytest

from swarm.dht.directory import Directory
from swarm.dht.records import ServerRecord
from swarm.errors import PeerTimeoutError, UnreachablePeerError
from swarm.routing.coordinates import Coordinate
from swarm.routing.moving import Action, Decision, Mover
from swarm.routing.view import Numerics, ServerState, ServerView, SwarmView
from swarm.server.choosing import agree_on_span
from swarm.server.distances import TIMEOUT_S, Distances, whom_to_ask
from swarm.server.mobility import Mobility, rules_for
from swarm.server.promises import BELIEVED_S, Promises
from swarm.spans import PeerId, Span, missing_spans
from swarm.wire.frames import PROTOCOL_VERSION
from swarm.wire.identity import Identity
from swarm.wire.virtual_time import run

CHECKPOINT = "c" * 40
BLOCKS = 30
FLOAT32 = Numerics("float32")


def server(peer: str, span: Span, state: ServerState = ServerState.ONLINE) -> ServerView:
    return ServerView(PeerId(peer), span, state, CHECKPOINT, FLOAT32, 1.0, 100.0, 100, 100, 0.0)


@pytest.mark.parametrize("seed", range(100))
def test_servers_that_are_started_together_take_different_blocks(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(2, 8)
    records: dict[str, ServerView] = {"0": server("0", Span(0, 6))}

    async def read() -> SwarmView:
        found = tuple(records.values())
        await asyncio.sleep(rng.uniform(0, 0.2))
        return SwarmView(CHECKPOINT, BLOCKS, found)

    async def join(peer: str) -> Span:
        async def announce(span: Span) -> bool:
            await asyncio.sleep(rng.uniform(0, 0.1))
            records[peer] = server(peer, span, ServerState.JOINING)
            return True

        return await agree_on_span(
            PeerId(peer), 6, 1.0, FLOAT32, read, announce, random.Random(rng.random())
        )

    async def story() -> list[Span]:
        return await asyncio.gather(*(join(str(number + 1)) for number in range(count)))

    spans = [Span(0, 6), *run(story())]
    lacking = sum(map(len, missing_spans(spans, BLOCKS)))
    assert lacking == max(0, BLOCKS - 6 * len(spans)), spans


# ---- distances

PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(1, 12)]
ME = PEERS[0]


def record(peer: PeerId, start: int, end: int, **changes: Any) -> ServerRecord:
    fields: dict[str, Any] = {
        "peer": peer,
        "span": Span(start, end),
        "state": ServerState.ONLINE,
        "checkpoint": CHECKPOINT,
        "model": "tiny",
        "num_blocks": BLOCKS,
        "numerics": FLOAT32,
        "version": "1",
        "protocol": PROTOCOL_VERSION,
    }
    return ServerRecord(**{**fields, **changes})


class FakeDirectory:
    """Answers pings of those who live."""

    def __init__(self) -> None:
        self.rtts: dict[PeerId, float] = {}
        self.asked: list[PeerId] = []
        self.takes_s = 0.0
        """To find out that one is gone."""

    async def round_trip_s(self, peer: PeerId, timeout_s: float) -> float:
        self.asked.append(peer)
        if peer not in self.rtts:
            await asyncio.sleep(self.takes_s)
            raise UnreachablePeerError(f"{peer} is gone", peer)
        return self.rtts[peer]


def distances() -> tuple[Distances, FakeDirectory]:
    fake = FakeDirectory()
    return Distances(cast(Directory, fake), ME, random.Random(0)), fake


def test_likely_next_hops_are_asked_and_only_a_few() -> None:
    following = [record(peer, 8, 20) for peer in PEERS[1:8]]
    others = [record(peer, 20, 30) for peer in PEERS[8:]]
    asked = whom_to_ask([record(ME, 0, 10), *following, *others], ME, Span(0, 10), random.Random(0))
    assert ME not in asked and len(asked) == len(set(asked)) == 6
    assert sum(peer in PEERS[1:8] for peer in asked) >= 4


def test_links_are_not_asked_again_and_next_hops_are_told() -> None:
    found, fake = distances()
    fake.rtts = {PEERS[2]: 0.2}
    records = [record(ME, 0, 10), record(PEERS[1], 10, 20), record(PEERS[2], 20, 30)]
    assert found.coordinate is None
    asyncio.run(found.survey(records, Span(0, 10), {PEERS[1]: 0.05}))
    assert fake.asked == [PEERS[2]]
    assert found.rtt_s({PEERS[1]}) == {PEERS[1]: 0.05}
    assert found.coordinate is not None


def test_a_coordinate_is_found_from_others() -> None:
    found, fake = distances()
    places = [Coordinate((x, 0.0, 0.0), 0.001, 0.1) for x in (0.1, -0.1)]
    records = [record(PEERS[n + 1], 10, 20, coordinate=place) for n, place in enumerate(places)]
    fake.rtts = {PEERS[1]: 0.103, PEERS[2]: 0.103}
    for _ in range(200):
        asyncio.run(found.survey(records, Span(0, 10), {}))
    assert found.coordinate is not None
    for place in places:
        assert found.coordinate.rtt_s(place) == pytest.approx(0.103, rel=0.15)


def test_who_does_not_answer_twice_is_dead_until_it_answers() -> None:
    found, fake = distances()
    records = [record(PEERS[1], 10, 20), record(PEERS[2], 20, 30)]
    fake.rtts = {PEERS[1]: 0.1}
    assert asyncio.run(found.survey(records, Span(0, 10), {})), "it is asked again soon"
    assert found.silent() == set()
    assert not asyncio.run(found.survey(records, Span(0, 10), {}))
    assert found.silent() == {PEERS[2]}
    fake.rtts[PEERS[2]] = 0.1
    asyncio.run(found.survey(records, Span(0, 10), {}))
    assert found.silent() == set()
    asyncio.run(found.survey(records[:1], Span(0, 10), {}))
    assert found.rtt_s(set(PEERS)) == {PEERS[1]: 0.1}, "who left is forgotten"


def test_a_directory_full_of_the_dead_costs_no_more_than_a_few_questions() -> None:
    found, fake = distances()
    dead = [Identity(bytes([1, number]) + bytes(30)).peer_id for number in range(100)]
    records = [record(PEERS[1], 10, 20), *(record(peer, 10, 20) for peer in dead)]
    fake.rtts = {PEERS[1]: 0.1}
    for _ in range(100):
        fake.asked.clear()
        asyncio.run(found.survey(records, Span(0, 10), {PEERS[1]: 0.1}))
        assert len(fake.asked) <= 22
    assert len(found.silent()) > 50, "most of them are found out all the same"


def test_whose_own_line_is_down_believes_the_records() -> None:
    found, fake = distances()
    records = [record(peer, 10, 20) for peer in PEERS[1:5]]
    fake.rtts = dict.fromkeys(PEERS[1:5], 0.1)
    asyncio.run(found.survey(records, Span(0, 10), {}))
    fake.rtts = {}
    for _ in range(3):
        asyncio.run(found.survey(records, Span(0, 10), {}))
        assert found.silent() == set()
    fake.rtts = dict.fromkeys(PEERS[2:5], 0.1)
    asyncio.run(found.survey(records, Span(0, 10), {}))
    assert found.silent() == {PEERS[1]}


def test_who_is_held_up_itself_takes_nobody_for_dead() -> None:
    found, fake = distances()
    records = [record(peer, 10, 20) for peer in PEERS[1:3]]
    fake.rtts = {PEERS[1]: 0.1}
    fake.takes_s = TIMEOUT_S + 1.0
    for _ in range(3):
        run(found.survey(records, Span(0, 10), {}))
        assert found.silent() == set()
    fake.takes_s = TIMEOUT_S
    for _ in range(2):
        run(found.survey(records, Span(0, 10), {}))
    assert found.silent() == {PEERS[2]}


def test_who_does_not_come_where_it_said_is_not_counted_on_for_ever() -> None:
    promises = Promises()
    moving = record(PEERS[1], 0, 10, moving_to=Span(10, 20))
    loading = record(PEERS[2], 20, 30, state=ServerState.JOINING)
    calm = record(PEERS[3], 0, 10)
    promises.read([moving, loading, calm], 0.0)
    promises.read([moving, loading, calm], BELIEVED_S)
    assert promises.broken == set()
    elsewhere = record(PEERS[2], 10, 20, state=ServerState.JOINING)
    promises.read([moving, elsewhere, calm], BELIEVED_S + 1)
    assert promises.broken == {PEERS[1]}
    promises.read([calm], BELIEVED_S + 2)
    promises.read([moving, calm], BELIEVED_S + 3)
    assert promises.broken == set(), "it came, and goes again"


# ---- carrying out moves


class Scripted(Mover):
    """Decides what it is told to, one look after the other."""

    def __init__(self, *decisions: Decision) -> None:
        super().__init__(ME, rules_for(6.0), random.Random(0), now=0.0)
        self._decisions = list(decisions)

    def look(self, *_: object, **__: object) -> Decision:
        if not self._decisions:
            raise asyncio.CancelledError
        self.next_look += 1.0
        return self._decisions.pop(0)


class Things:
    """What is moved, and what became of it, in order."""

    reload_s = 1.0

    def __init__(self, *fails: str) -> None:
        self.done: list[str] = []
        self._fails = fails

    async def prepare(self, span: Span) -> bool:
        self.done.append(f"prepare {span}")
        return "prepare" not in self._fails

    async def move(self, span: Span, reason: str) -> bool:
        self.done.append(f"move to {span} because {reason}")
        return "move" not in self._fails

    async def settle(self, span: Span) -> None:
        self.done.append(f"settle on {span}")


def carried_out(
    *decisions: Decision,
    announced: bool = True,
    read: Callable[[], Any] | None = None,
    fails: str = "",
) -> list[str]:
    """What was done, in order."""
    things = Things(fails)

    async def told() -> bool:
        counted_on = mobility.may_move(asyncio.get_running_loop().time())
        things.done.append(f"announce {mobility.intent if counted_on else 'to stay for long'}")
        return announced

    async def view() -> SwarmView:
        if read is not None:
            read()
        return SwarmView(CHECKPOINT, BLOCKS, ())

    mobility = Mobility(
        Scripted(*decisions),
        things,
        read=view,
        mine=lambda: server(ME, Span(0, 6)),
        announce=told,
    )

    async def story() -> None:
        with pytest.raises(asyncio.CancelledError):
            await mobility.watch()

    run(story())
    return things.done


ANNOUNCE = Decision(Action.ANNOUNCE, Span(6, 12), "it is needed")
GO = Decision(Action.GO, Span(6, 12), "it is needed")


def test_a_move_is_announced_then_done_then_forgotten() -> None:
    assert carried_out(Decision(Action.STAY), ANNOUNCE, GO) == [
        "announce 6:12",
        "prepare 6:12",
        "move to 6:12 because it is needed",
        "announce None",
    ]


def test_who_cannot_load_the_new_blocks_serves_the_old_ones_and_others_do_not_count_on_it() -> None:
    assert carried_out(ANNOUNCE, GO, fails="move")[2:] == [
        "move to 6:12 because it is needed",
        "settle on 0:6",
        "announce to stay for long",
    ]


def test_who_cannot_fetch_the_new_blocks_does_not_leave_the_old_ones() -> None:
    assert carried_out(ANNOUNCE, fails="prepare") == [
        "announce 6:12",
        "prepare 6:12",
        "announce to stay for long",
    ]


def test_a_move_that_is_withdrawn_is_told() -> None:
    withdraw = Decision(Action.WITHDRAW, None, "others went")
    assert carried_out(ANNOUNCE, withdraw) == [
        "announce 6:12",
        "prepare 6:12",
        "announce None",
    ]


def test_an_intention_that_nobody_heard_is_given_up() -> None:
    assert carried_out(ANNOUNCE, announced=False) == ["announce 6:12", "announce None"]


def test_without_the_directory_nothing_is_decided() -> None:
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise PeerTimeoutError("the directory did not answer")

    assert carried_out(read=fail) == []
    assert len(tries) == 3
