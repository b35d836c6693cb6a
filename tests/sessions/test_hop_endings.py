"""How a session ends on one hop: time, lost peers, failed passes, shutdown and closing."""

import pytest
from session_samples import CLIENT, HOPS, SESSION, make_step
from single_hops import fail_of, make_hop, step_to

from swarm.sessions.events import Forward, Free, PassFailed, PeerLost, Received, Stopping, Tick
from swarm.sessions.hop import LEASE_S
from swarm.sessions.messages import Close, Commit, Fail, FailKind, Fence, Step


def test_a_hold_lapses_without_commit() -> None:
    hop = make_hop()
    assert hop.deadline == LEASE_S
    assert hop.handle(Tick(), LEASE_S - 0.1) == []
    assert [type(i) for i in hop.handle(Tick(), LEASE_S)] == [Free]


@pytest.mark.parametrize(
    "message", [Commit(SESSION, 0), Fence(SESSION, 1), make_step(0, 0, (0,), (1,))]
)
def test_a_committed_session_lives_for_its_lifetime(message: Step | Commit | Fence) -> None:
    hop = make_hop()
    hop.handle(Received(CLIENT, message), 0.0)
    assert hop.deadline == 100.0
    assert hop.handle(Tick(), 99.0) == []
    assert fail_of(hop.handle(Tick(), 100.0)).why is FailKind.EXPIRED


def test_a_lost_client_is_waited_for() -> None:
    hop = make_hop()
    hop.handle(Received(CLIENT, Commit(SESSION, 0)), 0.0)
    assert hop.handle(PeerLost(CLIENT, "cut"), 1.0) == []
    assert hop.handle(Tick(), 10.9) == []
    hop.handle(Received(CLIENT, make_step(0, 0, (0,), (1,))), 10.9)
    assert hop.handle(Tick(), 12.0) == []
    hop.handle(PeerLost(CLIENT, "cut"), 20.0)
    assert [type(i) for i in hop.handle(Tick(), 30.0)] == [Free]


def test_a_lost_successor_is_reported_and_the_session_stays() -> None:
    hop = make_hop()
    (report,) = hop.handle(PeerLost(HOPS[2], "cut"), 0.0)
    assert isinstance(report, Forward)
    assert isinstance(report.message, Fail)
    assert (report.message.why, report.message.peer) == (FailKind.PEER_LOST, HOPS[2])
    assert not hop.freed
    assert hop.handle(PeerLost(HOPS[0], "cut"), 0.0) == []


def test_the_successors_failure_is_passed_on_with_its_name() -> None:
    fail = Fail(SESSION, 2, FailKind.UNKNOWN_SESSION, "restarted")
    (passed,) = make_hop().handle(Received(HOPS[2], fail), 0.0)
    assert passed == Forward(
        CLIENT, Fail(SESSION, 2, FailKind.UNKNOWN_SESSION, "restarted", HOPS[2])
    )


def test_failed_passes_and_shutdown_end_the_session() -> None:
    failure = Fail(SESSION, 1, FailKind.NOT_FINITE, "NaN")
    hop = make_hop()
    step_to(hop, make_step(0, 0, (0,), (1,)))
    assert fail_of(hop.handle(PassFailed(0, 0, failure), 0.0)).why is FailKind.NOT_FINITE
    hop = make_hop()
    hop.handle(Received(CLIENT, Fence(SESSION, 1)), 0.0)
    assert hop.handle(PassFailed(0, 0, failure), 0.0) == []
    fail = fail_of(hop.handle(Stopping(FailKind.SHUTTING_DOWN, "bye"), 0.0))
    assert fail.why is FailKind.SHUTTING_DOWN


def test_close_frees() -> None:
    assert make_hop().handle(Received(CLIENT, Close(SESSION)), 0.0) == [
        Free("closed by the client")
    ]
