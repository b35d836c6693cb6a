"""The client's side of an open session, frame by frame."""

import msgspec
import pytest
from session_samples import HOPS, SESSION, make_grant, signed

from swarm.errors import (
    NotFiniteError,
    PeerTimeoutError,
    SessionClosedError,
    SessionFullError,
    SessionLostError,
    StepRejectedError,
    SwarmError,
)
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.answers import MAX_GAPS
from swarm.sessions.client import MAX_REPAIRS, ClientSession
from swarm.sessions.events import (
    Deliver,
    Forward,
    Instruction,
    NeedsRoute,
    PeerLost,
    Raise,
    Received,
    Tick,
)
from swarm.sessions.messages import (
    Close,
    Fail,
    FailKind,
    Fence,
    Gap,
    Holds,
    Hop,
    Output,
    Replay,
    RowOperation,
    Step,
    TensorSpec,
    Want,
)
from swarm.spans import PeerId


def make_session(*, window: int = 2, can_reroute: bool = False) -> ClientSession:
    return ClientSession(make_grant(), window=window, can_reroute=can_reroute)


def ask(
    session: ClientSession,
    *counts: int,
    want: Want = Want.LAST,
    operation: RowOperation | None = None,
    now: float = 0.0,
) -> tuple[int, list[Step]]:
    positions = tuple(range(sum(counts)))
    ticket, instructions = session.step(
        counts, positions, want, f"input of {counts}", now=now, operation=operation
    )
    return ticket, steps(instructions)


def steps(instructions: list[Instruction]) -> list[Step]:
    return [
        i.message for i in instructions if isinstance(i, Forward) and isinstance(i.message, Step)
    ]


def fences(instructions: list[Instruction]) -> list[Fence]:
    return [
        i.message for i in instructions if isinstance(i, Forward) and isinstance(i.message, Fence)
    ]


def answer(session: ClientSession, step: Step, now: float = 0.0) -> list[Instruction]:
    """The last hop's output for a step that wants the last positions."""
    counts = tuple(min(count, 1) for count in step.counts)
    tensors = (TensorSpec("hidden", "float32", (sum(counts), 8)),)
    output = Output(SESSION, step.epoch, step.seq, step.starts, counts, tensors, 1.0, 0.0)
    return session.handle(Received(HOPS[2], output, "answer"), now)


def raised(instructions: list[Instruction]) -> SwarmError:
    closes = [i.message for i in instructions[:-1] if isinstance(i, Forward)]
    assert closes == [Close(SESSION)] * 3
    assert isinstance(instructions[-1], Raise)
    return instructions[-1].error


def test_a_step_goes_to_the_first_hop_and_its_answer_is_delivered() -> None:
    session = make_session()
    ticket, instructions = session.step((3, 1), (0, 1, 2, 0), Want.LAST, "input", now=0.0)
    (forward,) = instructions
    assert isinstance(forward, Forward)
    assert (forward.to, forward.payload) == (HOPS[0], "input")
    assert forward.service_class is ServiceClass.DECODE
    assert (session.held, session.planned) == ((0, 0), (3, 1))
    (step,) = steps(instructions)
    (deliver,) = answer(session, step)
    assert isinstance(deliver, Deliver)
    assert deliver.ticket == ticket
    assert deliver.payload == "answer"
    assert session.held == (3, 1)
    assert session.idle


def test_at_most_a_window_of_steps_is_unanswered() -> None:
    session = make_session(window=2)
    sent = [ask(session, 5)[1] for _ in range(4)]
    assert [[(s.seq, s.starts) for s in each] for each in sent] == [
        [(0, (0,))],
        [(1, (5,))],
        [],
        [],
    ]
    deliver, forward = answer(session, sent[0][0])
    assert isinstance(deliver, Deliver)
    assert [(s.seq, s.starts) for s in steps([forward])] == [(2, (10,))]


def test_a_prompt_that_is_cut_as_fine_as_decode_goes_with_prompts() -> None:
    session = make_session(window=3)
    classes = []
    for count in (16, 16, 1):
        instructions = session.step((count,), tuple(range(count)), Want.LAST, "input", now=0.0)[1]
        classes += [each.service_class for each in instructions if isinstance(each, Forward)]
    assert classes == [ServiceClass.DECODE, ServiceClass.PREFILL, ServiceClass.PREFILL]


def test_an_operation_waits_for_all_answers_and_begins_an_epoch() -> None:
    session = make_session()
    _, (first,) = ask(session, 5)
    operation = RowOperation(parents=(0, 0), truncate_to=(4, 5))
    assert ask(session, 1, 1, operation=operation)[1] == []
    assert ask(session, 1, 1)[1] == []
    second, third = steps(answer(session, first))
    assert (second.epoch, second.seq, second.starts) == (1, 0, (4, 5))
    assert second.operation == operation
    assert (third.epoch, third.seq, third.starts) == (1, 1, (5, 6))
    assert third.operation is None
    assert session.held == (4, 5)


def test_repeated_and_foreign_answers_are_ignored() -> None:
    session = make_session()
    _, (step,) = ask(session, 5)
    output = Output(SESSION, 0, 0, (0,), (1,), (), 0.0, 0.0)
    assert session.handle(Received(HOPS[1], output), 0.0) == []
    older = msgspec.structs.replace(step, epoch=7)
    assert answer(session, older) == []
    assert len(answer(session, step)) == 1
    assert answer(session, step) == []


@pytest.mark.parametrize("tokens", [0, 2])
def test_an_answer_of_another_size_is_the_last_hops_fault(tokens: int) -> None:
    session = make_session()
    ask(session, 5)
    spec = (TensorSpec("hidden", "float32", (tokens, 8)),)
    output = Output(SESSION, 0, 0, (4,), (1,), spec, 0.0, 0.0)
    error = raised(session.handle(Received(HOPS[2], output), 0.0))
    assert isinstance(error, StepRejectedError)
    assert (error.peer, error.blocks) == (HOPS[2], "20:30")


def test_bad_steps_are_the_users_own_errors_and_change_nothing() -> None:
    session = make_session()
    with pytest.raises(StepRejectedError, match="first step"):
        ask(session, 1, operation=RowOperation(truncate_to=(0,)))
    _, (step,) = ask(session, 50)
    answer(session, step)
    with pytest.raises(SessionFullError, match="100 tokens a row, and 101"):
        ask(session, 51)
    for counts in ((1, 1), (0,), ()):
        with pytest.raises(StepRejectedError):
            ask(session, *counts)
    for operation in (
        RowOperation(truncate_to=(51,)),
        RowOperation(truncate_to=(1, 1)),
        RowOperation(parents=(1,)),
        RowOperation(parents=(0,) * 5),
    ):
        with pytest.raises(StepRejectedError):
            ask(session, *(1,) * len(operation.parents or (0,)), operation=operation)
    with pytest.raises(StepRejectedError):
        session.step((2,), (0,), Want.ALL, "input", now=0.0)
    assert (session.held, session.planned) == ((50,), (50,))
    assert len(ask(session, 1)[1]) == 1


def test_silence_ends_the_session() -> None:
    session = make_session()
    assert session.deadline is None
    assert session.handle(Tick(), 1e9) == []
    _, (first,) = ask(session, 1, now=10.0)
    _, (second,) = ask(session, 1, now=30.0)
    assert session.deadline == 70.0
    answer(session, first, now=50.0)
    assert session.handle(Tick(), 109.0) == []
    session.deadline_s = 70.0
    assert session.handle(Tick(), 119.0) == []
    session.deadline_s = 60.0
    error = raised(session.handle(Tick(), 110.0))
    assert isinstance(error, PeerTimeoutError)
    assert all(peer in str(error) for peer in HOPS)
    with pytest.raises(SessionClosedError, match="has failed"):
        ask(session, 1)
    assert answer(session, second) == []


@pytest.mark.parametrize(
    ("why", "kind"),
    [
        (FailKind.REJECTED, StepRejectedError),
        (FailKind.NOT_FINITE, NotFiniteError),
        (FailKind.UNKNOWN_SESSION, SessionLostError),
        (FailKind.EXPIRED, SessionLostError),
        (FailKind.SHUTTING_DOWN, SessionLostError),
        (FailKind.INTERNAL, SessionLostError),
    ],
)
def test_what_a_hop_reports_is_raised_with_its_blocks(
    why: FailKind, kind: type[SwarmError]
) -> None:
    session = make_session()
    assert session.handle(Received(PeerId("stranger-00"), Fail(SESSION, 1, why, "")), 0.0) == []
    error = raised(session.handle(Received(HOPS[1], Fail(SESSION, 1, why, "details")), 0.0))
    assert type(error) is kind
    assert isinstance(error, StepRejectedError | NotFiniteError | SessionLostError)
    assert (error.peer, error.blocks) == (HOPS[1], "10:20")
    assert "details" in str(error)


def test_a_lost_hop_ends_a_session_that_cannot_be_rerouted() -> None:
    session = make_session()
    assert session.handle(PeerLost(PeerId("stranger-00"), "cut"), 0.0) == []
    assert isinstance(raised(session.handle(PeerLost(HOPS[1], "cut"), 0.0)), SessionLostError)
    fail = Fail(SESSION, 1, FailKind.PEER_LOST, "cut", HOPS[2])
    error = raised(make_session().handle(Received(HOPS[1], fail), 0.0))
    assert isinstance(error, SessionLostError)
    assert error.peer == HOPS[2]


def test_close_frees_all_hops_once() -> None:
    session = make_session()
    _, (step,) = ask(session, 1)
    closes = session.close()
    assert closes == [Forward(peer, Close(SESSION)) for peer in HOPS]
    assert session.close() == []
    assert answer(session, step) == []
    with pytest.raises(SessionClosedError, match="is closed"):
        ask(session, 1)


def test_a_gap_at_the_first_hop_is_filled_with_unanswered_steps() -> None:
    session = make_session(window=3)
    sent = [ask(session, 1)[1][0] for _ in range(3)]
    again = session.handle(Received(HOPS[0], Gap(SESSION, 0, 0, (1,), 1)), 0.0)
    assert steps(again) == sent[1:]
    assert session.handle(Received(HOPS[0], Gap(SESSION, 7, 0, (1,), 1)), 0.0) == []


def test_a_first_hop_that_never_has_enough_is_given_up() -> None:
    """A gap is a few bytes, and what fills it may be megabytes."""
    session = make_session(window=3)
    ask(session, 1)
    gap = Received(HOPS[0], Gap(SESSION, 0, 0, (), 0))
    answers = [session.handle(gap, 0.0) for _ in range(MAX_GAPS + 1)]
    assert all(len(steps(one)) == 1 for one in answers[:-1])
    assert not steps(answers[-1])
    assert len(fences(answers[-1])) == len(HOPS)


def hold_all(session: ClientSession, epoch: int, held: list[tuple[int, ...]]) -> list[Instruction]:
    instructions: list[Instruction] = []
    for hop, lengths in enumerate(held):
        holds = Holds(SESSION, epoch, hop, lengths, None, 0)
        instructions = session.handle(Received(HOPS[hop], holds), 0.0)
    return instructions


def test_a_gap_behind_is_repaired_by_fencing_all_hops() -> None:
    session = make_session()
    _, (first,) = ask(session, 4)
    answer(session, first)
    ask(session, 1)
    fenced = session.handle(Received(HOPS[1], Gap(SESSION, 0, 2, (4,), 1)), 0.0)
    assert [(f.epoch, f.operation) for f in fences(fenced)] == [(1, None)] * 3
    aligned = hold_all(session, 1, [(5,), (5,), (4,)])
    assert [(f.epoch, f.operation) for f in fences(aligned)] == [
        (2, RowOperation(truncate_to=(4,)))
    ] * 3
    (again,) = steps(hold_all(session, 2, [(4,), (4,), (4,)]))
    assert (again.epoch, again.seq, again.starts) == (3, 0, (4,))
    assert isinstance(answer(session, again)[0], Deliver)


def test_repairs_in_vain_end() -> None:
    session = make_session()
    ask(session, 4)
    for _ in range(MAX_REPAIRS):
        fenced = fences(session.handle(Received(HOPS[1], _gap(session)), 0.0))
        assert len(fenced) == 3
        epoch = fenced[0].epoch
        hold_all(session, epoch, [(4,), (4,), (0,)])
        hold_all(session, epoch + 1, [(0,), (0,), (0,)])
    assert isinstance(
        raised(session.handle(Received(HOPS[1], _gap(session)), 0.0)), SessionLostError
    )


def _gap(session: ClientSession) -> Gap:
    return Gap(SESSION, session.epoch, 2, (0,), 0)


def test_a_hop_that_claims_impossible_rows_ends_the_session() -> None:
    session = make_session()
    _, (first,) = ask(session, 4)
    answer(session, first)
    session.reroute(session.grant, None, 0.0)
    assert isinstance(raised(hold_all(session, 1, [(4,), (4, 4), (4,)])), SessionLostError)


def test_a_new_route_refills_the_new_hop_from_a_backup_before_it() -> None:
    session = make_session(can_reroute=True)
    _, (first,) = ask(session, 4)
    answer(session, first)
    _, (lost,) = ask(session, 1)
    (needs,) = session.handle(PeerLost(HOPS[1], "cut"), 0.0)
    assert isinstance(needs, NeedsRoute)
    assert needs.peer == HOPS[1]
    assert ask(session, 1)[1] == []
    fresh = PeerId("server-9999")
    old = make_grant()
    hops = (old.hops[0], Hop(fresh, 10, 20), old.hops[2])
    grant = msgspec.structs.replace(old, route=1, hops=hops)
    started = session.reroute(grant, signed(grant), 0.0)
    assert Forward(HOPS[1], Close(SESSION)) not in started
    assert [(f.epoch, f.hop, f.signed) for f in fences(started)] == [
        (1, hop, signed(grant)) for hop in range(3)
    ]
    peers = (HOPS[0], fresh, HOPS[2])

    def all_hold(epoch: int, held: list[tuple[int, ...]]) -> list[Instruction]:
        for hop in range(3):
            backup = (0,) if hop != 1 else None
            holds = Holds(SESSION, epoch, hop, held[hop], backup, 0)
            instructions = session.handle(Received(peers[hop], holds), 0.0)
        return instructions

    aligned = fences(all_hold(1, [(5,), (), (4,)]))
    cut = RowOperation(truncate_to=(4,))
    assert [f.operation for f in aligned] == [cut, None, cut]
    (replay,) = all_hold(2, [(4,), (), (4,)])
    assert replay == Forward(HOPS[0], Replay(SESSION, 2, 0, (0,), (4,), (4,), 1, horizon=3))
    refilled = Output(SESSION, 2, 0, (4,), (0,), (), 0.0, 0.0)
    assert session.handle(Received(HOPS[2], refilled), 0.0) == []
    repaired = session.handle(Received(fresh, refilled), 0.0)
    assert repaired[0] == Forward(HOPS[1], Close(SESSION))
    again = steps(repaired)
    assert [(s.epoch, s.seq, s.starts) for s in again] == [(3, 0, (4,)), (3, 1, (5,))]
    assert again[0].counts == lost.counts


@pytest.mark.parametrize("ends", ["another hop is lost", "the user closes"])
def test_a_hop_that_was_left_is_told_although_the_repair_does_not_end(ends: str) -> None:
    session = make_session(can_reroute=True)
    _, (first,) = ask(session, 4)
    answer(session, first)
    old = make_grant()
    hops = (old.hops[0], Hop(PeerId("server-9999"), 10, 20), old.hops[2])
    session.reroute(msgspec.structs.replace(old, route=1, hops=hops), None, 0.0)
    if ends == "another hop is lost":
        instructions = session.handle(PeerLost(HOPS[2], "cut"), 0.0)
    else:
        instructions = session.close()
    assert Forward(HOPS[1], Close(SESSION)) in instructions


def test_what_nobody_waits_for_does_not_keep_a_repair_alive() -> None:
    session = make_session(can_reroute=True)
    ask(session, 5)
    session.reroute(session.grant, None, 0.0)
    stale = Holds(SESSION, epoch=0, hop=0, held=(), backup_from=None)
    twice = Holds(SESSION, epoch=1, hop=0, held=(), backup_from=None)
    session.handle(Received(HOPS[0], twice), 1.0)
    for now in range(2, 61):
        for message in (stale, twice, Output(SESSION, 0, 0, (), (), (), 0.0, 0.0)):
            for hop in HOPS[:2]:
                session.handle(Received(hop, message), float(now))
    *closes, last = session.handle(Tick(), 61.0)
    assert isinstance(last, Raise) and isinstance(last.error, PeerTimeoutError)
    assert len(closes) == len(HOPS)
