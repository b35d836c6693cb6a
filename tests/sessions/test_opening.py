"""The client's two phases, answer by answer."""

import pytest
from session_samples import HOPS, SESSION, make_grant, signed

from swarm.errors import (
    CacheFullError,
    CheckpointError,
    PeerTimeoutError,
    RefusedError,
    SwarmError,
    UnreachablePeerError,
)
from swarm.sessions.events import Forward, Instruction, Opened, PeerLost, Raise, Received, Tick
from swarm.sessions.hop import LEASE_S, HopSession
from swarm.sessions.messages import (
    Close,
    Commit,
    Fail,
    FailKind,
    Held,
    Message,
    Open,
    Refused,
    RefuseKind,
)
from swarm.sessions.opening import Opening
from swarm.spans import PeerId


def start(deadline_s: float = 20.0, hops: tuple[int, ...] | None = None) -> Opening:
    grant = make_grant()
    opening = Opening(grant, signed(grant), deadline_s=deadline_s, hops=hops)
    opening.start(0.0)
    return opening


def sent(instructions: list[Instruction]) -> list[tuple[PeerId, Message]]:
    return [(i.to, i.message) for i in instructions if isinstance(i, Forward)]


def held(opening: Opening, hop: int, attempt: int = 0, now: float = 1.0) -> list[Instruction]:
    return opening.handle(Received(HOPS[hop], Held(SESSION, 0, attempt)), now)


def refused(
    opening: Opening,
    hop: int,
    why: RefuseKind = RefuseKind.CACHE_FULL,
    attempt: int = 0,
    now: float = 1.0,
) -> list[Instruction]:
    message = Refused(SESSION, 0, why, "why", 7, attempt)
    return opening.handle(Received(HOPS[hop], message), now)


def raised(instructions: list[Instruction]) -> SwarmError:
    assert isinstance(instructions[-1], Raise)
    return instructions[-1].error


def test_all_hold_then_all_commit() -> None:
    grant = make_grant()
    opening = Opening(grant, signed(grant), deadline_s=20.0)
    opens = sent(opening.start(0.0))
    assert opens == [(peer, Open(signed(grant), hop, 0.0, 0)) for hop, peer in enumerate(HOPS)]
    assert held(opening, 2) == held(opening, 0) == []
    ended = held(opening, 1)
    assert sent(ended) == [(peer, Commit(SESSION, 0)) for peer in HOPS]
    assert ended[-1] == Opened()
    assert opening.finished
    assert opening.deadline is None


def test_one_full_hop_releases_all_and_waits_in_ascending_order() -> None:
    opening = start()
    held(opening, 0)
    refused(opening, 1)
    released = sent(held(opening, 2, now=2.0))
    assert released[:2] == [(HOPS[0], Close(SESSION)), (HOPS[2], Close(SESSION))]
    assert released[2] == (HOPS[0], Open(signed(make_grant()), 0, 18.0, 1))
    assert held(opening, 0, attempt=0, now=2.5) == []
    ((peer, message),) = sent(held(opening, 0, attempt=1, now=3.0))
    assert (peer, message) == (HOPS[1], Open(signed(make_grant()), 1, 17.0, 1))
    held(opening, 1, attempt=1, now=9.0)
    assert held(opening, 2, attempt=1, now=9.5)[-1] == Opened()


def test_no_room_until_the_deadline() -> None:
    opening = start()
    for hop in range(3):
        refused(opening, hop)
    held(opening, 0, attempt=1)
    instructions = refused(opening, 1, attempt=1, now=20.0)
    assert sent(instructions) == [(HOPS[0], Close(SESSION))]
    error = raised(instructions)
    assert isinstance(error, CacheFullError)
    assert (error.peer, error.blocks) == (HOPS[1], "10:20")
    assert "within 20 s" in str(error)


def test_a_hop_that_can_never_give_room() -> None:
    opening = start()
    for hop in range(3):
        refused(opening, hop)
    held(opening, 0, attempt=1)
    error = raised(refused(opening, 1, attempt=1, now=3.0))
    assert isinstance(error, CacheFullError)
    assert "no room ever" in str(error)
    assert "why; ask for fewer tokens, or choose another server" in str(error)


def test_without_waiting_a_full_hop_ends_it() -> None:
    grant = make_grant()
    opening = Opening(grant, signed(grant), deadline_s=20.0, may_wait=False)
    opening.start(0.0)
    held(opening, 0)
    instructions = refused(opening, 1)
    assert sorted(sent(instructions)) == [(HOPS[0], Close(SESSION)), (HOPS[2], Close(SESSION))]
    error = raised(instructions)
    assert isinstance(error, CacheFullError)
    assert error.peer == HOPS[1]


def test_a_hop_that_never_gives_room_ends_the_opening() -> None:
    opening = start()
    for hop in range(3):
        refused(opening, hop)
    assert opening.deadline == 25.0
    assert opening.handle(Tick(), 24.9) == []
    instructions = opening.handle(Tick(), 25.0)
    assert sent(instructions) == [(HOPS[0], Close(SESSION))]
    assert isinstance(raised(instructions), CacheFullError)


@pytest.mark.parametrize(
    ("why", "kind"),
    [
        (RefuseKind.WRONG_CHECKPOINT, CheckpointError),
        (RefuseKind.WRONG_SPAN, RefusedError),
        (RefuseKind.BAD_GRANT, RefusedError),
        (RefuseKind.QUOTA, RefusedError),
        (RefuseKind.DRAINING, RefusedError),
    ],
)
def test_other_refusals_end_it_at_once(why: RefuseKind, kind: type[SwarmError]) -> None:
    opening = start()
    held(opening, 0)
    instructions = refused(opening, 1, why)
    assert sorted(sent(instructions)) == [(HOPS[0], Close(SESSION)), (HOPS[2], Close(SESSION))]
    error = raised(instructions)
    assert type(error) is kind
    assert HOPS[1] in str(error)
    assert held(opening, 2) == []


def test_a_silent_hop_is_named() -> None:
    opening = start()
    held(opening, 0)
    held(opening, 2)
    instructions = opening.handle(Tick(), 5.0)
    error = raised(instructions)
    assert isinstance(error, PeerTimeoutError)
    assert error.peer == HOPS[1]
    assert {peer for peer, _ in sent(instructions)} == set(HOPS)


def test_a_lost_hop_is_named() -> None:
    assert start().handle(PeerLost(PeerId("stranger-00"), "cut"), 1.0) == []
    error = raised(start().handle(PeerLost(HOPS[1], "cut"), 1.0))
    assert isinstance(error, UnreachablePeerError)
    assert error.peer == HOPS[1]


def test_failures_of_hops_end_it() -> None:
    fail = Fail(SESSION, 1, FailKind.SHUTTING_DOWN, "bye")
    assert isinstance(raised(start().handle(Received(HOPS[1], fail), 1.0)), RefusedError)
    fail = Fail(SESSION, 1, FailKind.PEER_LOST, "cut", HOPS[2])
    error = raised(start().handle(Received(HOPS[1], fail), 1.0))
    assert isinstance(error, UnreachablePeerError)
    assert error.peer == HOPS[2]


def test_only_the_new_hops_of_a_route_are_opened() -> None:
    opening = start(hops=(1,))
    assert sent(held(opening, 1)) == [(HOPS[1], Commit(SESSION, 0))]
    nothing_new = Opening(make_grant(), signed(make_grant()), deadline_s=1.0, hops=())
    assert nothing_new.start(0.0) == [Opened()]


def test_a_hold_outlives_the_wait_for_the_other_hops() -> None:
    grant = make_grant()
    hop = HopSession(grant, 0, 0.0)
    opening = start()
    held(opening, 0, now=0.0)
    held(opening, 1, now=0.0)
    assert opening.deadline is not None
    last = opening.deadline - 0.01
    assert held(opening, 2, now=last)[-1] == Opened()
    travelled = last + 2.0
    assert hop.handle(Tick(), travelled) == []
    hop.handle(Received(PeerId(grant.client), Commit(SESSION, 0)), travelled)
    assert not hop.freed
    assert hop.deadline > LEASE_S


def test_cancel_releases_everything() -> None:
    opening = start()
    held(opening, 0)
    assert {peer for peer, _ in sent(opening.cancel())} == set(HOPS)
    assert opening.cancel() == []
    assert held(opening, 1) == []


def test_answers_of_others_are_ignored() -> None:
    opening = start()
    assert opening.handle(Received(PeerId("stranger-00"), Held(SESSION, 0)), 1.0) == []
    assert opening.handle(Received(HOPS[0], Held(SESSION, 9)), 1.0) == []
    assert opening.handle(Received(HOPS[0], Held(b"f" * 16, 0)), 1.0) == []
    held(opening, 1)
    held(opening, 2)
    assert held(opening, 0)[-1] == Opened()
