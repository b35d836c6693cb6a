"""One hop's rules, frame by frame."""

import pytest
from session_samples import CLIENT, HOPS, SESSION, make_grant, make_step, signed

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.events import (
    Compute,
    Event,
    Forward,
    Free,
    Instruction,
    PassDone,
    PassFailed,
    PeerLost,
    Received,
    RouteChanged,
    Stopping,
    Tick,
)
from swarm.sessions.hop import LEASE_S, HopSession
from swarm.sessions.messages import (
    Close,
    Commit,
    Fail,
    FailKind,
    Fence,
    Gap,
    Holds,
    Output,
    Replay,
    RowOperation,
    Step,
    TensorSpec,
    Want,
)
from swarm.spans import PeerId


def make_hop(index: int = 1, **kwargs: bool) -> HopSession:
    return HopSession(make_grant(), index, 0.0, **kwargs)


def step_to(hop: HopSession, step: Step, sender: PeerId | None = None) -> list[Instruction]:
    pusher = HOPS[hop.hop - 1] if hop.hop else CLIENT
    return hop.handle(Received(sender or pusher, step, "input"), 0.0)


def run_step(hop: HopSession, step: Step) -> Forward:
    """Take the step and do its pass; its answer."""
    (compute,) = step_to(hop, step)
    assert isinstance(compute, Compute)
    (forward,) = hop.handle(PassDone(step.epoch, step.seq, f"output {step.seq}"), 0.0)
    assert isinstance(forward, Forward)
    return forward


def fail_of(instructions: list[Instruction]) -> Fail:
    assert [type(i) for i in instructions] == [Forward, Free]
    assert isinstance(instructions[0], Forward)
    message = instructions[0].message
    assert isinstance(message, Fail)
    assert instructions[0].to == CLIENT
    return message


def test_a_step_is_computed_committed_and_pushed_on() -> None:
    hop = make_hop()
    step = make_step(0, 0, (0, 0), (3, 1))
    (compute,) = step_to(hop, step)
    assert compute == Compute(step, "input", ServiceClass.DECODE, False)
    assert (hop.held, hop.expected) == ((0, 0), (3, 1))
    (forward,) = hop.handle(PassDone(0, 0, "output"), 0.0)
    assert isinstance(forward, Forward)
    assert (forward.to, forward.payload, forward.rows) == (HOPS[2], "output", None)
    assert (hop.held, hop.expected) == ((3, 1), (3, 1))


@pytest.mark.parametrize(
    ("want", "starts", "counts", "rows"),
    [
        (Want.ALL, (0, 0, 0), (3, 1, 0), None),
        (Want.LAST, (2, 0, 0), (1, 1, 0), ((2, 1), (0, 1), (0, 0))),
        (Want.NONE, (0, 0, 0), (0, 0, 0), ((0, 0), (0, 0), (0, 0))),
    ],
)
def test_the_last_hop_answers_the_client_with_what_it_wants(
    want: Want,
    starts: tuple[int, ...],
    counts: tuple[int, ...],
    rows: tuple[tuple[int, int], ...] | None,
) -> None:
    forward = run_step(make_hop(2), make_step(0, 0, (0, 0, 0), (3, 1, 0), want=want))
    assert isinstance(forward.message, Output)
    assert forward.to == CLIENT
    assert (forward.message.starts, forward.message.counts) == (starts, counts)
    assert forward.rows == rows
    assert (forward.payload is None) == (want is Want.NONE)


def test_only_what_goes_on_of_an_output_is_kept() -> None:
    hop = HopSession(make_grant(), 2, 0.0, trim=lambda output, rows: (output, rows))
    forward = run_step(hop, make_step(0, 0, (0, 0), (3, 1), want=Want.LAST))
    assert forward.payload == ("output 0", ((2, 1), (0, 1)))
    assert forward.rows is None


def test_chunks_are_taken_while_earlier_ones_are_in_the_engine() -> None:
    hop = make_hop()
    for seq in range(3):
        (compute,) = step_to(hop, make_step(0, seq, (50 * seq // 2,), (25,)))
        assert isinstance(compute, Compute)
        assert compute.service_class is ServiceClass.PREFILL
    assert hop.handle(PassDone(0, 1, "second"), 0.0) == []
    forwards = hop.handle(PassDone(0, 0, "first"), 0.0)
    assert [f.payload for f in forwards if isinstance(f, Forward)] == ["first", "second"]
    assert (hop.held, hop.expected) == ((50,), (75,))


def test_a_duplicate_is_answered_again_and_changes_nothing() -> None:
    hop = make_hop()
    first = make_step(0, 0, (0,), (3,))
    assert len(step_to(hop, first)) == 1
    assert step_to(hop, first) == []
    (answer,) = hop.handle(PassDone(0, 0, "output"), 0.0)
    run_step(hop, make_step(0, 1, (3,), (1,)))
    assert step_to(hop, first) == [answer]
    assert hop.held == (4,)


def test_a_missing_step_is_a_gap_and_nothing_is_computed() -> None:
    hop = make_hop()
    run_step(hop, make_step(0, 0, (0,), (3,)))
    for late in (make_step(0, 2, (4,), (1,)), make_step(0, 1, (4,), (1,))):
        (gap,) = step_to(hop, late)
        assert gap == Forward(HOPS[0], Gap(SESSION, 0, 1, (3,), 1))
    assert hop.expected == (3,)


def test_an_epoch_whose_first_frame_was_missed_is_not_begun() -> None:
    hop = make_hop()
    run_step(hop, make_step(0, 0, (0,), (3,)))
    (gap,) = step_to(hop, make_step(1, 1, (3,), (1,)))
    assert gap == Forward(HOPS[0], Gap(SESSION, 1, 1, (3,), 0))
    assert (hop.epoch, hop.held) == (0, (3,))


def test_an_operation_is_applied_once_and_told_to_the_engine() -> None:
    hop = make_hop()
    run_step(hop, make_step(0, 0, (0, 0), (3, 5)))
    operation = RowOperation(parents=(1, 1, 0), truncate_to=(4, 5, 3))
    fork = make_step(1, 0, (4, 5, 3), (1, 1, 1), operation=operation)
    (compute,) = step_to(hop, fork)
    assert isinstance(compute, Compute)
    assert compute.first_of_epoch
    assert compute.step.operation == operation
    assert step_to(hop, fork) == []
    hop.handle(PassDone(1, 0, "output"), 0.0)
    assert (hop.epoch, hop.held) == (1, (5, 6, 4))


def test_the_engine_is_told_of_all_forks_since_its_last_pass() -> None:
    hop = make_hop()
    run_step(hop, make_step(0, 0, (0, 0), (3, 5)))
    for epoch, parents in ((1, (1, 0)), (2, (0, 0, 1))):
        fence = Fence(SESSION, epoch, operation=RowOperation(parents=parents))
        (holds,) = hop.handle(Received(CLIENT, fence), 0.0)
        assert isinstance(holds, Forward)
        assert isinstance(holds.message, Holds)
    assert holds.message.held == (5, 5, 3)
    (compute,) = step_to(hop, make_step(2, 0, (5, 5, 3), (1, 0, 0)))
    assert isinstance(compute, Compute)
    assert compute.step.operation == RowOperation(parents=(1, 1, 0), truncate_to=(5, 5, 3))


def test_a_pass_of_an_older_epoch_is_neither_counted_nor_pushed() -> None:
    hop = make_hop()
    run_step(hop, make_step(0, 0, (0,), (3,)))
    step_to(hop, make_step(0, 1, (3,), (2,)))
    hop.handle(Received(CLIENT, Fence(SESSION, 1)), 0.0)
    assert hop.handle(PassDone(0, 1, "stale"), 0.0) == []
    assert (hop.held, hop.expected) == ((3,), (3,))
    (compute,) = step_to(hop, make_step(1, 0, (3,), (1,)))
    assert isinstance(compute, Compute)
    assert compute.step.operation == RowOperation(truncate_to=(3,))


def test_frames_of_an_older_epoch_are_dropped() -> None:
    hop = make_hop()
    hop.handle(Received(CLIENT, Fence(SESSION, 3)), 0.0)
    assert step_to(hop, make_step(2, 0, (0,), (1,))) == []
    assert hop.handle(Received(CLIENT, Fence(SESSION, 2)), 0.0) == []
    assert hop.epoch == 3


def test_a_rollback_beyond_what_is_held_is_a_gap() -> None:
    hop = make_hop()
    run_step(hop, make_step(0, 0, (0,), (3,)))
    step = make_step(1, 0, (4,), (1,), operation=RowOperation(truncate_to=(4,)))
    (gap,) = step_to(hop, step)
    assert gap == Forward(HOPS[0], Gap(SESSION, 1, 1, (3,), 0))


@pytest.mark.parametrize(
    "step",
    [
        make_step(0, 1, (2,), (1,)),
        make_step(0, 1, (3, 0), (1, 1)),
        make_step(0, 1, (3,), (98,)),
        make_step(0, 1, (3,), (1,), operation=RowOperation(truncate_to=(3,))),
        make_step(1, 0, (3,), (1,), operation=RowOperation(parents=(1,))),
        make_step(1, 0, (3,) * 5, (1,) * 5, operation=RowOperation(parents=(0,) * 5)),
        make_step(1, 0, (3,), (1,), operation=RowOperation(truncate_to=(3, 3))),
        make_step(0, 1, (3,), (1,), emit_from=(1, 2)),
        make_step(0, 1, (3,), (1025,)),
    ],
)
def test_a_step_that_breaks_the_rules_ends_the_session_only(step: Step) -> None:
    hop = make_hop()
    run_step(hop, make_step(0, 0, (0,), (3,)))
    fail = fail_of(step_to(hop, step))
    assert fail.why is FailKind.REJECTED
    assert SESSION.hex()[:8] in fail.detail
    assert "10:20" in fail.detail
    assert hop.freed
    assert step_to(hop, make_step(0, 1, (3,), (1,))) == []


@pytest.mark.parametrize(
    "tensors",
    [
        (),
        (TensorSpec("hidden", "bfloat16", (1, 8)),),
        (TensorSpec("hidden", "float32", (2, 8)),),
        (TensorSpec("other", "float32", (1, 8)),),
        (TensorSpec("hidden", "float32", (1, 8)), TensorSpec("hidden", "float32", (1, 8))),
    ],
)
def test_tensors_that_do_not_fit_the_step_are_rejected(tensors: tuple[TensorSpec, ...]) -> None:
    step = make_step(0, 0, (0,), (1,))
    wrong = Step(
        **{field: getattr(step, field) for field in step.__struct_fields__} | {"tensors": tensors}
    )
    assert fail_of(step_to(make_hop(), wrong)).why is FailKind.REJECTED


@pytest.mark.parametrize(
    "event",
    [
        Received(HOPS[2], make_step(0, 0, (0,), (1,))),
        Received(PeerId("stranger-00"), make_step(0, 0, (0,), (1,))),
        Received(HOPS[0], Close(SESSION)),
        Received(HOPS[0], Commit(SESSION, 0)),
        Received(HOPS[0], Fence(SESSION, 1)),
        Received(HOPS[0], Gap(SESSION, 0, 0, ())),
        Received(HOPS[0], Replay(SESSION, 0, 0, (0,), (1,), (), 1)),
        PeerLost(PeerId("stranger-00"), "cut"),
    ],
)
def test_only_the_client_and_the_neighbours_are_heard(event: Event) -> None:
    hop = make_hop()
    assert hop.handle(event, 0.0) == []
    assert (hop.epoch, hop.held, hop.freed) == (0, (), False)


def test_emit_from_keeps_a_refill_from_the_hops_behind() -> None:
    hop = make_hop()
    refill = make_step(1, 0, (0, 0), (4, 2), want=Want.NONE, emit_from=(6, 2), emit_hop=1)
    hop.handle(Received(CLIENT, Fence(SESSION, 1)), 0.0)
    ends_here = run_step(hop, refill)
    assert ends_here.to == CLIENT
    assert isinstance(ends_here.message, Output)
    assert ends_here.message.counts == (0, 0)
    partly = run_step(hop, make_step(1, 1, (4, 2), (4, 1), emit_from=(6, 2), emit_hop=1))
    assert isinstance(partly.message, Step)
    assert (partly.message.starts, partly.message.counts) == ((6, 2), (2, 1))
    assert partly.message.position_ids == (2, 3, 4)
    assert partly.rows == ((2, 2), (0, 1))


def test_hops_before_the_end_of_a_refill_forward_everything() -> None:
    forward = run_step(make_hop(0), make_step(0, 0, (0,), (4,), emit_from=(9,), emit_hop=1))
    assert isinstance(forward.message, Step)
    assert forward.message.counts == (4,)
    assert forward.service_class is ServiceClass.REPAIR


def test_after_a_fence_the_first_step_may_have_any_number_but_no_hole() -> None:
    hop = make_hop()
    hop.handle(Received(CLIENT, Fence(SESSION, 1)), 0.0)
    (gap,) = step_to(hop, make_step(1, 5, (2,), (1,)))
    assert isinstance(gap, Forward)
    assert isinstance(gap.message, Gap)
    run_step(hop, make_step(1, 5, (0,), (1,)))
    (gap,) = step_to(hop, make_step(1, 7, (1,), (1,)))
    assert isinstance(gap, Forward)
    assert isinstance(gap.message, Gap)


def test_a_gap_is_filled_with_kept_answers() -> None:
    hop = make_hop()
    answers = [run_step(hop, make_step(0, seq, (seq,), (1,))) for seq in range(3)]
    filled = hop.handle(Received(HOPS[2], Gap(SESSION, 0, 2, (1,), 1)), 0.0)
    assert filled == answers[1:]
    assert hop.handle(Received(HOPS[2], Gap(SESSION, 0, 2, (3,), 3)), 0.0) == []


def test_a_gap_that_cannot_be_filled_goes_to_the_client() -> None:
    hop = make_hop()
    for seq in range(70):
        run_step(hop, make_step(0, seq, (seq,), (1,)))
    gap = Gap(SESSION, 0, 2, (1,), 1)
    assert hop.handle(Received(HOPS[2], gap), 0.0) == [Forward(CLIENT, gap)]


def test_a_small_frame_does_not_buy_answers_for_ever() -> None:
    hop = make_hop()
    first = make_step(0, 0, (0,), (3,))
    answer = run_step(hop, first)
    assert [step_to(hop, first) for _ in range(5)] == [[answer]] * 3 + [[]] * 2
    run_step(hop, make_step(0, 1, (3,), (1,)))
    gap = Gap(SESSION, 0, 2, (3,), 1)
    filled = [hop.handle(Received(HOPS[2], gap), 0.0) for _ in range(20)]
    assert filled[-1] == [Forward(CLIENT, gap)]
    assert filled.count(filled[0]) == 16


def test_a_duplicate_of_another_shape_is_no_duplicate() -> None:
    hop = make_hop()
    run_step(hop, make_step(0, 0, (0,), (3,)))
    assert fail_of(step_to(hop, make_step(0, 0, (0,), (3,), emit_from=(1, 2)))).why is (
        FailKind.REJECTED
    )


def test_kept_answers_are_bounded() -> None:
    hop = HopSession(make_grant(length=100_000), 1, 0.0)
    for seq in range(6):
        run_step(hop, make_step(0, seq, (1000 * seq,), (1000,)))
    gap = Gap(SESSION, 0, 2, (2000,), 2)
    assert len(hop.handle(Received(HOPS[2], gap), 0.0)) == 4
    gap = Gap(SESSION, 0, 2, (1000,), 1)
    assert hop.handle(Received(HOPS[2], gap), 0.0) == [Forward(CLIENT, gap)]


def test_holds_says_what_a_backup_covers_and_replay_pushes_it() -> None:
    hop = make_hop(keep_backup=True)
    run_step(hop, make_step(0, 0, (0, 0), (3, 2)))
    run_step(hop, make_step(0, 1, (3, 2), (1, 0)))
    (holds,) = hop.handle(Received(CLIENT, Fence(SESSION, 1)), 0.0)
    assert holds == Forward(CLIENT, Holds(SESSION, 1, 1, (4, 2), (0, 0), 0))
    replay = Replay(SESSION, 1, 0, (1, 0), (3, 2), (4, 2), 2)
    (pushed,) = hop.handle(Received(CLIENT, replay), 0.0)
    assert isinstance(pushed, Forward)
    assert isinstance(pushed.message, Step)
    assert pushed.message.position_ids == (1, 2, 0, 3, 4)
    assert pushed.parts is not None
    assert [(p.payload, p.first, p.tokens) for p in pushed.parts] == [
        ("output 0", 1, 2),
        ("output 1", 0, 1),
        ("output 0", 3, 2),
    ]


def test_a_replay_after_the_eviction_of_the_backup_says_so() -> None:
    hop = make_hop(keep_backup=True)
    run_step(hop, make_step(0, 0, (0,), (3,)))
    hop.evict_backup()
    (holds,) = hop.handle(Received(CLIENT, Replay(SESSION, 0, 1, (0,), (3,), (3,), 2)), 0.0)
    assert holds == Forward(CLIENT, Holds(SESSION, 0, 1, (3,), None, 0))
    assert not hop.freed


def test_backup_bytes_follow_what_is_kept() -> None:
    hop = make_hop(keep_backup=True)
    for seq in range(3):
        step_to(hop, make_step(0, seq, (seq,), (1,)))
        hop.handle(PassDone(0, seq, "output", output_bytes=10), 0.0)
    assert hop.backup_bytes == 30
    fence = Fence(SESSION, 1, operation=RowOperation(parents=(0, 0), truncate_to=(2, 1)))
    hop.handle(Received(CLIENT, fence), 0.0)
    assert hop.backup_bytes == 20
    hop.evict_backup()
    assert hop.backup_bytes == 0


def test_a_new_route_moves_the_hop() -> None:
    hop = make_hop()
    grant = make_grant(route=1)
    grant = type(grant)(
        **{f: getattr(grant, f) for f in grant.__struct_fields__} | {"hops": grant.hops[::-1]}
    )
    fence = Fence(SESSION, 1, signed(grant), 1)
    (holds,) = hop.handle(RouteChanged(CLIENT, fence, grant), 0.0)
    assert isinstance(holds, Forward)
    assert isinstance(holds.message, Holds)
    assert step_to(hop, make_step(1, 0, (0,), (1,)), HOPS[0]) == []
    assert len(step_to(hop, make_step(1, 0, (0,), (1,)), HOPS[2])) == 1


def test_a_new_route_may_not_change_what_was_reserved() -> None:
    hop = make_hop()
    grant = make_grant(route=1, rows=5)
    fail = fail_of(
        hop.handle(RouteChanged(CLIENT, Fence(SESSION, 1, signed(grant), 1), grant), 0.0)
    )
    assert fail.why is FailKind.REJECTED


def test_a_fence_with_an_unchecked_route_is_rejected() -> None:
    fence = Fence(SESSION, 1, signed(make_grant(route=1)), 1)
    fail = fail_of(make_hop().handle(Received(CLIENT, fence), 0.0))
    assert fail.why is FailKind.REJECTED


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
