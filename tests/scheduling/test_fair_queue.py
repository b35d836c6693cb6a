"""FairQueue against a model that is written as slowly and plainly as possible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.fair_queue import Entry, FairQueue


def entry(
    item: int, service_class: ServiceClass, session: bytes = b"", cost: int = 1
) -> Entry[int]:
    return Entry(item, service_class, "client", session, cost)


class PlainQueue:
    """All entries in order of arrival; of each session only the first may go."""

    def __init__(self) -> None:
        self.entries: list[Entry[int]] = []

    def best(self) -> Entry[int] | None:
        eligible = []
        seen: set[bytes] = set()
        for candidate in self.entries:
            if not candidate.session or candidate.session not in seen:
                eligible.append(candidate)
                seen.add(candidate.session)
        return min(eligible, key=lambda candidate: candidate.service_class, default=None)


pushes = st.tuples(
    st.just("push"),
    st.sampled_from(ServiceClass),
    st.sampled_from([b"", b"one", b"two", b"three"]),
    st.integers(0, 9),
)
operations = st.lists(
    st.one_of(
        pushes,
        pushes,
        st.just(("pop",)),
        st.tuples(st.just("remove"), st.sampled_from([b"one", b"two"])),
    ),
    max_size=60,
)


@given(operations)
def test_it_is_the_plain_queue(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    queue: FairQueue[int] = FairQueue()
    model = PlainQueue()
    for number, step in enumerate(steps):
        if step[0] == "push":
            pushed = entry(number, step[1], step[2], step[3])
            queue.push(pushed)
            model.entries.append(pushed)
        elif step[0] == "pop" and model.entries:
            popped = queue.pop()
            assert popped is model.best()
            model.entries.remove(popped)
        elif step[0] == "remove":
            removed = queue.remove_session(step[1])
            assert removed == [e for e in model.entries if e.session == step[1]]
            model.entries = [e for e in model.entries if e.session != step[1]]
        assert queue.peek() is model.best()
        assert len(queue) == len(model.entries)
        for service_class in ServiceClass:
            waiting = [e.cost for e in model.entries if e.service_class == service_class]
            assert queue.cost(service_class) == sum(waiting)


def test_decode_goes_before_prefill_that_came_first() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push(entry(1, ServiceClass.PREFILL, b"a"))
    queue.push(entry(2, ServiceClass.DECODE, b"b"))
    assert [queue.pop().item, queue.pop().item] == [2, 1]


def test_a_session_never_overtakes_itself() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push(entry(1, ServiceClass.PREFILL, b"a"))
    queue.push(entry(2, ServiceClass.DECODE, b"a"))
    queue.push(entry(3, ServiceClass.PREFILL, b"b"))
    assert [queue.pop().item for _ in range(3)] == [1, 2, 3]


def test_an_empty_queue_has_nothing() -> None:
    queue: FairQueue[int] = FairQueue()
    assert queue.peek() is None
    assert queue.remove_session(b"a") == []
    with pytest.raises(IndexError):
        queue.pop()
