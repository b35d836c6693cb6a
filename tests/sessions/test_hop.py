"""One hop's rules for steps, frame by frame: order, duplicates, epochs, broken rules."""

from collections.abc import Sequence

import pytest
from session_samples import CLIENT, HOPS, SESSION, make_grant, make_step
from single_hops import fail_of, make_hop, run_step, step_to

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.events import Compute, Event, Forward, PassDone, PeerLost, Received
from swarm.sessions.hop import HopSession
from swarm.sessions.messages import (
    Close,
    Commit,
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

DECODE, PREFILL = ServiceClass.DECODE, ServiceClass.PREFILL


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


def classes_of(hop: HopSession, counts: Sequence[tuple[int, ...]]) -> list[ServiceClass]:
    """Of steps with `counts`, none of which has ended when the next comes."""
    classes: list[ServiceClass] = []
    starts = hop.expected or (0,) * len(counts[0])
    for each in counts:
        (compute,) = step_to(hop, make_step(0, hop._next_seq, starts, each))
        assert isinstance(compute, Compute)
        classes.append(compute.service_class)
        starts = hop.expected
    return classes


def test_a_prompt_that_is_cut_as_fine_as_decode_goes_with_prompts() -> None:
    hop = make_hop()
    assert classes_of(hop, [(16,), (16,), (1,)]) == [DECODE, PREFILL, PREFILL]
    answers = [hop.handle(PassDone(0, seq, "output"), 0.0) for seq in range(3)]
    forwards = [each for instructions in answers for each in instructions]
    assert [f.service_class for f in forwards if isinstance(f, Forward)] == [
        DECODE, PREFILL, PREFILL,
    ]  # fmt: skip
    assert classes_of(hop, [(16,)]) == [DECODE]


def test_one_step_in_several_pieces_is_decode() -> None:
    of_40_rows = HopSession(make_grant(rows=40), 1, 0.0)
    first, second = ((1,) * 25 + (0,) * 15, (0,) * 25 + (1,) * 15)
    assert classes_of(of_40_rows, [first, second]) == [DECODE, DECODE]
    assert classes_of(make_hop(), [(9,), (7,), (1,)]) == [DECODE, DECODE, PREFILL]


def test_a_refill_under_way_does_not_make_the_step_behind_it_a_prompt() -> None:
    hop = make_hop()
    (refill,) = step_to(hop, make_step(0, 0, (0,), (40,), emit_from=(40,), emit_hop=1))
    assert isinstance(refill, Compute) and refill.service_class is ServiceClass.REPAIR
    (compute,) = step_to(hop, make_step(0, 1, (40,), (1,)))
    assert isinstance(compute, Compute) and compute.service_class is DECODE


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


# ---- what breaks the rules


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


def test_a_duplicate_of_another_shape_is_no_duplicate() -> None:
    hop = make_hop()
    run_step(hop, make_step(0, 0, (0,), (3,)))
    assert fail_of(step_to(hop, make_step(0, 0, (0,), (3,), emit_from=(1, 2)))).why is (
        FailKind.REJECTED
    )
