"""The two pure halves of a link against each other: any losses of streams, any order of acks."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_peers import content, request

from swarm.errors import FramingError, LinkFullError
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.decode_activity import DecodeActivity
from swarm.scheduling.link_window import LinkWindow
from swarm.sessions.messages import StatusRequest, encode
from swarm.wire.fair_budget import FairBudget
from swarm.wire.frames import (
    HEADER,
    MAX_BODY_BYTES,
    MAX_MESSAGE_BYTES,
    PRELUDE,
    Frame,
    FrameReader,
    FrameType,
    Range,
    pack_ack,
)
from swarm.wire.inbox import CREDIT_BYTES, MAX_GAPS, NUMBER_WINDOW, Inbox, Numbers
from swarm.wire.outbox import Outbox
from swarm.wire.outstanding import Outstanding

sizes = st.sampled_from([0, 10, 4096, 65_000, 65_536, 100_000, 200_000])
sends = st.tuples(
    st.just("send"),
    st.sampled_from(ServiceClass),
    st.sampled_from([b"", b"one", b"two"]),
    sizes,
)
steps = st.lists(
    st.one_of(
        sends,
        st.tuples(st.just("carry"), st.integers(1, 6)),
        st.just(("acknowledge",)),
        st.just(("delayed hello",)),
        st.tuples(st.just("new stream"), st.booleans()),
    ),
    max_size=50,
)


def new_outbox(max_bytes: int, budget: FairBudget | None = None) -> Outbox:
    outstanding = Outstanding(max_bytes, budget or FairBudget(10**9, 10))
    return Outbox(outstanding, LinkWindow(), DecodeActivity())


def new_inbox(budget: FairBudget | None = None) -> Inbox:
    return Inbox(budget or FairBudget(10**9, 10))


def fragment(number: int, body: bytes, flags: int = 0) -> Frame:
    return Frame(FrameType.DATA, 1, flags, number, 0, 0, memoryview(body))


def carry(outbox: Outbox, inbox: Inbox, reader: FrameReader, most: int) -> list[tuple[int, bytes]]:
    """Brings up to `most` frames over; the messages that they end."""
    got = []
    for _ in range(most):
        packed = outbox.next_frame(0, 0)
        if packed is None:
            break
        (frame,) = reader.feed(b"".join(packed))
        assert len(frame.body) <= MAX_BODY_BYTES
        arrived = inbox.data(frame)
        outbox.received(inbox.received_bytes, 0.0)
        if arrived is not None:
            got.append((request(arrived[0]), bytes(arrived[1])))
    return got


@settings(max_examples=300)
@given(steps)
def test_each_message_once_whole_and_in_order(script: list[tuple]) -> None:  # type: ignore[type-arg]
    outbox, inbox, reader = new_outbox(10**9), new_inbox(), FrameReader()
    outbox.begin_stream(0, (), inbox.grant())
    sent: list[tuple[bytes, int, int]] = []
    got: list[tuple[int, bytes]] = []
    stale = (0, list[Range]())
    for step in script:
        if step[0] == "send":
            number = len(sent)
            sent.append((step[2], number, step[3]))
            payload = [content(number, step[3] // 2), content(number, step[3] - step[3] // 2)]
            outbox.push(StatusRequest(number), payload, step[1], step[2], "")
        elif step[0] == "carry":
            got += carry(outbox, inbox, reader, step[1])
        elif step[0] == "acknowledge":
            outbox.acknowledge(inbox.delivered.complete, inbox.delivered.ranges())
            outbox.credit = inbox.grant()
        elif step[0] == "delayed hello":
            stale = (inbox.delivered.complete, list(inbox.delivered.ranges()))
        else:
            if step[1]:
                stale = (inbox.delivered.complete, list(inbox.delivered.ranges()))
            inbox.begin_stream()
            outbox.begin_stream(*stale, inbox.grant())
            reader = FrameReader()
    while outbox.waiting:
        got += carry(outbox, inbox, reader, 50)
        outbox.credit = inbox.grant()
    outbox.acknowledge(inbox.delivered.complete, inbox.delivered.ranges())
    assert sorted(number for number, _ in got) == [number for _, number, _ in sent]
    assert all(payload == content(number, sent[number][2]) for number, payload in got)
    for session in (b"one", b"two"):
        order = [number for number, _ in got if sent[number][0] == session]
        assert order == sorted(order)
    assert outbox.outstanding.total == outbox.unacknowledged == inbox.unfinished_bytes == 0
    assert inbox.delivered.complete == len(sent)


@given(st.permutations(range(12)), st.integers(0, 12))
def test_numbers_are_a_set(order: list[int], length: int) -> None:
    numbers, model = Numbers(), set[int]()
    for number in order[:length]:
        numbers.add(number)
        model.add(number)
        listed = set(range(numbers.complete))
        for start, end in numbers.ranges():
            listed |= set(range(start, end))
        assert listed == model
        assert all((n in numbers) == (n in model) for n in range(14))
        assert numbers.has_gaps == bool(numbers.ranges())


def test_what_waits_is_bounded() -> None:
    outbox = new_outbox(2000)
    outbox.push(StatusRequest(1), [bytes(800)], ServiceClass.DECODE, b"", "")
    with pytest.raises(LinkFullError, match="reads too slowly"):
        outbox.push(StatusRequest(2), [bytes(800)], ServiceClass.DECODE, b"", "")
    outbox.begin_stream(0, (), CREDIT_BYTES)
    assert outbox.next_frame(0, 0) is not None
    with pytest.raises(LinkFullError):
        outbox.push(StatusRequest(2), [bytes(800)], ServiceClass.DECODE, b"", "")
    outbox.acknowledge(1)
    outbox.push(StatusRequest(2), [bytes(800)], ServiceClass.DECODE, b"", "")


def test_what_was_not_sent_cannot_be_acknowledged() -> None:
    outbox = new_outbox(10**6)
    outbox.begin_stream(0, (), CREDIT_BYTES)
    outbox.push(StatusRequest(1), [bytes(100_000)], ServiceClass.BULK, b"", "")
    with pytest.raises(FramingError):
        outbox.acknowledge(1)
    assert outbox.next_frame(0, 0) is not None
    with pytest.raises(FramingError, match="a part is not sent"):
        outbox.acknowledge(1)
    with pytest.raises(FramingError):
        outbox.acknowledge(0, [Range(1, 2**60)])


def test_more_than_was_granted_is_refused() -> None:
    inbox = new_inbox()
    inbox.grant()

    def fragment(flags: int, body: bytes) -> Frame:
        return Frame(FrameType.DATA, 1, flags, 0, 0, 0, memoryview(body))

    inbox.data(fragment(1, PRELUDE.pack(2 * CREDIT_BYTES, 0)))
    for _ in range(CREDIT_BYTES // MAX_BODY_BYTES - 1):
        inbox.data(fragment(0, bytes(MAX_BODY_BYTES)))
    with pytest.raises(FramingError, match="were granted"):
        inbox.data(fragment(0, bytes(MAX_BODY_BYTES)))


def test_credit_wraps_around() -> None:
    outbox, inbox, reader = new_outbox(10**9), new_inbox(), FrameReader()
    outbox.begin_stream(0, (), inbox.grant())
    # Almost 2**32 bytes have come over the stream.
    before = 2**32 - 5 * 2**20
    inbox.received_bytes = outbox.window.sent_bytes = outbox.window.delivered_bytes = before
    outbox.credit = inbox.grant()
    payload = memoryview(bytes(2 * 1024 * 1024))
    arrived = 0
    for number in range(8):
        outbox.push(StatusRequest(number), [payload], ServiceClass.BULK, b"", "")
        while outbox.waiting:
            now = inbox.received_bytes / 1e9
            packed = outbox.next_frame(0, 0, now=now)
            if packed is None:
                outbox.credit = inbox.grant()
            else:
                arrived += inbox.data(reader.feed(b"".join(packed))[0]) is not None
                outbox.received(inbox.received_bytes, now + 1e-5)
        outbox.acknowledge(inbox.delivered.complete)
    assert inbox.received_bytes > 2**32
    assert arrived == 8


def test_what_is_only_announced_takes_no_memory() -> None:
    inbox = new_inbox()
    tracemalloc.start()
    try:
        for number in range(4):
            inbox.data(fragment(number, PRELUDE.pack(MAX_MESSAGE_BYTES, 10), 1))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_the_links_share_one_budget_and_the_greedy_one_pays() -> None:
    budget = FairBudget(100_000, 10)
    greedy, modest = new_inbox(budget), new_inbox(budget)
    begin = PRELUDE.pack(10**6, 10)
    greedy.data(fragment(0, begin + bytes(60_000), 1))
    greedy.data(fragment(0, bytes(39_000)))
    modest.data(fragment(0, begin + bytes(40_000), 1))
    with pytest.raises(FramingError, match="of all peers"):
        greedy.data(fragment(0, bytes(1000)))
    assert budget.used == 139_000
    greedy.drop_unfinished()
    modest.data(fragment(0, bytes(40_000)))
    modest.begin_stream()
    assert budget.used == 0


def push(outbox: Outbox, size: int, service_class: ServiceClass = ServiceClass.PREFILL) -> None:
    outbox.push(StatusRequest(1), [bytes(size)], service_class, b"", "")


def test_outboxes_share_one_budget_and_the_greedy_one_pays() -> None:
    budget = FairBudget(100_000, 10)
    greedy, modest = new_outbox(10**6, budget), new_outbox(10**6, budget)
    push(greedy, 60_000)
    push(greedy, 30_000)
    push(modest, 40_000)
    assert budget.used > budget.max_bytes
    with pytest.raises(LinkFullError, match="on all links"):
        push(greedy, 1000)
    push(greedy, 1000, ServiceClass.CONTROL)
    with pytest.raises(LinkFullError, match="on all links"):
        push(modest, 20_000)
    modest.begin_stream(0, (), CREDIT_BYTES)
    while modest.next_frame(0, 0) is not None:
        pass
    modest.received(50_000, 0.0)
    while modest.next_frame(0, 0) is not None:
        pass
    modest.acknowledge(1)
    push(modest, 45_000)
    greedy.close()
    push(modest, 20_000)
    modest.close()
    assert budget.used == 0


def test_a_short_fragment_does_not_keep_what_it_came_with() -> None:
    """A megabyte in fragments of 2 KiB, each read together with 62 KiB of something else."""
    inbox = new_inbox()
    inbox.data(fragment(0, PRELUDE.pack(1 << 20, 10), 1))
    tracemalloc.start()
    try:
        for _ in range(512):
            read = memoryview(bytes(64 * 1024))
            inbox.data(Frame(FrameType.DATA, 1, 0, 0, 0, 0, read[:2040]))
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_an_unfinished_message_must_move() -> None:
    inbox = new_inbox()
    inbox.data(fragment(0, PRELUDE.pack(1000, 10), 1))
    inbox.sweep()
    inbox.data(fragment(0, b"1"))
    inbox.sweep()
    with pytest.raises(FramingError, match="nothing more of message 0, of which 999"):
        inbox.sweep()


def whole(number: int) -> Frame:
    header = encode(StatusRequest(1))
    return fragment(number, PRELUDE.pack(len(header), len(header)) + header, 3)


def test_one_ack_lists_all_gaps_that_may_be() -> None:
    inbox = new_inbox()
    for number in range(MAX_GAPS):
        assert inbox.data(whole(2 * number + 1)) is not None
    assert len(pack_ack(0, inbox.delivered.ranges(), 0)) == HEADER.size + 16 * MAX_GAPS
    with pytest.raises(FramingError, match="gaps"):
        inbox.data(whole(2 * MAX_GAPS + 1))


@pytest.mark.parametrize("number", [NUMBER_WINDOW, 2**63, 2**64 - 1])
def test_numbers_far_beyond_are_refused(number: int) -> None:
    with pytest.raises(FramingError, match="is missing"):
        new_inbox().data(whole(number))
    with pytest.raises(FramingError, match="is missing"):
        new_inbox().data(fragment(number, PRELUDE.pack(1000, 10), 1))


def test_no_more_is_on_its_way_than_may_leave_gaps() -> None:
    outbox = new_outbox(10**9)
    outbox.begin_stream(0, (), CREDIT_BYTES)
    frames = 0
    for number in range(MAX_GAPS + 10):
        arguments = (StatusRequest(number), [], ServiceClass.DECODE, b"", "", 0, 0)
        frames += outbox.pack_or_push(*arguments) is not None
    assert (frames, outbox.waiting, outbox.unacknowledged) == (MAX_GAPS, 10, MAX_GAPS)
    assert outbox.next_frame(0, 0) is None
    outbox.acknowledge(0, [Range(1, 3)])
    assert outbox.next_frame(0, 0) is not None
    assert outbox.next_frame(0, 0) is not None
    assert outbox.next_frame(0, 0) is None


def test_one_session_cannot_fill_the_link() -> None:
    outbox = new_outbox(12_000)
    outbox.begin_stream(0, (), CREDIT_BYTES)

    def push(session: bytes, size: int) -> None:
        outbox.push(StatusRequest(1), [bytes(size)], ServiceClass.DECODE, session, "")

    push(b"one", 3000)
    with pytest.raises(LinkFullError, match="of this session"):
        push(b"one", 10)
    outbox.push(StatusRequest(1), [], ServiceClass.CONTROL, b"one", "")
    push(b"two", 10)
    push(b"two", 10)
    sent = 0
    while outbox.waiting:
        frame = outbox.next_frame(0, 0)
        assert frame is not None
        sent += sum(map(len, frame)) - HEADER.size
        outbox.received(sent, 0.0)
    outbox.acknowledge(outbox.unacknowledged)
    push(b"one", 800)
    push(b"one", 10)
