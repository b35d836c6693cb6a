"""One hop's part in repairs: refills, gaps, kept answers, backups and new routes."""

from session_samples import CLIENT, HOPS, SESSION, make_grant, make_step, signed
from single_hops import fail_of, make_hop, run_step, step_to

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.events import Forward, PassDone, Received, RouteChanged
from swarm.sessions.hop import HopSession
from swarm.sessions.messages import (
    FailKind,
    Fence,
    Gap,
    Holds,
    Output,
    Replay,
    RowOperation,
    Step,
    Want,
)

# ---- refills and gaps


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


def test_kept_answers_are_bounded() -> None:
    hop = HopSession(make_grant(length=100_000), 1, 0.0)
    for seq in range(6):
        run_step(hop, make_step(0, seq, (1000 * seq,), (1000,)))
    gap = Gap(SESSION, 0, 2, (2000,), 2)
    assert len(hop.handle(Received(HOPS[2], gap), 0.0)) == 4
    gap = Gap(SESSION, 0, 2, (1000,), 1)
    assert hop.handle(Received(HOPS[2], gap), 0.0) == [Forward(CLIENT, gap)]


def test_kept_answers_are_counted_where_no_backup_has_them_and_can_be_dropped() -> None:
    """The last of them too: who asks for it is told that it is gone, and repairs."""
    last, first = make_hop(2), make_hop(0, keep_backup=True)
    for hop in (last, first):
        for seq in range(3):
            step = make_step(0, seq, (4 * seq,), (4,), want=Want.LAST if seq else Want.ALL)
            step_to(hop, step)
            hop.handle(PassDone(0, seq, "output", output_bytes=40), 0.0)
    assert last.backup_bytes == 120, "without `trim` nobody has a copy of what is needed alone"
    assert first.backup_bytes == 120, "not twice"
    assert not last.evict_backup()
    assert first.evict_backup()
    assert last.backup_bytes == first.backup_bytes == 0
    assert step_to(last, make_step(0, 2, (8,), (4,))) == []
    gap = Gap(SESSION, 0, 1, (8,), 2)
    assert first.handle(Received(HOPS[1], gap), 0.0) == [Forward(CLIENT, gap)]
    assert first.handle(Received(HOPS[1], Gap(SESSION, 0, 1, (12,), 3)), 0.0) == []
    run_step(first, make_step(0, 3, (12,), (4,)))
    assert first.handle(Received(HOPS[1], Gap(SESSION, 0, 1, (12,), 3)), 0.0)


def test_only_what_goes_on_of_an_answer_counts() -> None:
    hop = HopSession(make_grant(), 2, 0.0, trim=lambda output, rows: "trimmed")
    for seq, want in enumerate((Want.LAST, Want.NONE, Want.ALL)):
        step_to(hop, make_step(0, seq, (4 * seq,), (4,), want=want))
        hop.handle(PassDone(0, seq, "output", output_bytes=40), 0.0)
    assert hop.backup_bytes == 10 + 0 + 40


# ---- backups


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


# ---- new routes


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
