"""FairQueue: order, shares, the bound on waiting, fairness among clients; on a virtual clock."""

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.fair_queue import Entry, FairQueue, Policy

CONTROL, DECODE, REPAIR, PREFILL, BULK = ServiceClass
WITHOUT_CREDIT = Policy(shares={}, longest_wait_s=None)


def entry(
    item: int,
    service_class: ServiceClass,
    session: bytes = b"",
    cost: int = 1,
    client: str = "client",
) -> Entry[int]:
    return Entry(item, service_class, client, session, cost)


class PlainQueue:
    """All entries in order of arrival; of each session only the first may go."""

    def __init__(self) -> None:
        self.entries: list[Entry[int]] = []

    def eligible(self) -> list[Entry[int]]:
        found = []
        seen: set[object] = set()
        for candidate in self.entries:
            line = candidate.session or candidate.service_class
            if line not in seen:
                found.append(candidate)
                seen.add(line)
        return found


pushes = st.tuples(
    st.just("push"),
    st.sampled_from(ServiceClass),
    st.sampled_from([b"", b"one", b"two", b"three"]),
    st.integers(1, 9),
)
operations = st.lists(
    st.one_of(
        pushes,
        pushes,
        st.just(("pop",)),
        st.just(("part",)),
        st.tuples(st.just("remove"), st.sampled_from([b"one", b"two"])),
        st.just(("drain",)),
    ),
    max_size=60,
)


@given(operations)
def test_classes_in_order_and_sessions_strictly(script: list[tuple]) -> None:  # type: ignore[type-arg]
    queue: FairQueue[int] = FairQueue(WITHOUT_CREDIT)
    model = PlainQueue()
    for number, step in enumerate(script):
        if step[0] == "push":
            pushed = entry(number, step[1], step[2], step[3])
            queue.push(pushed)
            model.entries.append(pushed)
        elif step[0] == "pop" and model.entries:
            chosen = queue.peek()
            assert queue.pop() is chosen
            model.entries.remove(chosen)
        elif step[0] == "part" and model.entries:
            chosen = queue.peek()
            assert chosen is not None
            queue.serve(chosen, 0.5)
        elif step[0] == "remove":
            removed = queue.remove_session(step[1])
            assert removed == [e for e in model.entries if e.session == step[1]]
            model.entries = [e for e in model.entries if e.session != step[1]]
        elif step[0] == "drain":
            drained = queue.drain()
            assert sorted(e.item for e in drained) == [e.item for e in model.entries]
            for again in drained:
                queue.push(again)
            model.entries = drained
        eligible = model.eligible()
        chosen = queue.peek()
        if chosen is None:
            assert not model.entries
        else:
            assert any(chosen is each for each in eligible)
            assert chosen.service_class == min(each.service_class for each in eligible)
        assert len(queue) == len(model.entries)
        for service_class in ServiceClass:
            waiting = [e.cost for e in model.entries if e.service_class == service_class]
            assert queue.cost(service_class) == sum(waiting)


def test_decode_goes_before_prefill_that_came_first() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push(entry(1, PREFILL, b"a"))
    queue.push(entry(2, DECODE, b"b"))
    assert [queue.pop().item, queue.pop().item] == [2, 1]


def test_a_session_never_overtakes_itself() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push(entry(1, PREFILL, b"a"))
    queue.push(entry(2, DECODE, b"a"))
    queue.push(entry(3, PREFILL, b"b"))
    order = [queue.pop().item for _ in range(3)]
    assert order.index(1) < order.index(2)
    assert order[0] in (1, 3)


def test_an_empty_queue_has_nothing() -> None:
    queue: FairQueue[int] = FairQueue()
    assert queue.peek() is None
    assert queue.remove_session(b"a") == []
    with pytest.raises(IndexError):
        queue.pop()


# ---- decode saturates: what the others are promised


def saturated(
    policy: Policy, classes: list[ServiceClass], rounds: int, quantum: int, service_s: float
) -> tuple[dict[ServiceClass, int], dict[ServiceClass, float]]:
    """Every class always has work; what each is given, and its longest wait for a quantum."""
    queue: FairQueue[int] = FairQueue(policy)
    queue.quantum = quantum
    given_to: dict[ServiceClass, int] = defaultdict(int)
    longest: dict[ServiceClass, float] = defaultdict(float)
    last = dict.fromkeys(classes, 0.0)
    now = 0.0
    for number, service_class in enumerate(classes):
        queue.push(entry(number, service_class, b"%d" % number, quantum), now)
    for number in range(rounds):
        chosen = queue.peek(now)
        assert chosen is not None
        served = chosen.service_class
        longest[served] = max(longest[served], now - last[served])
        now += service_s
        last[served] = now
        queue.pop(now - service_s)
        given_to[served] += quantum
        queue.push(entry(number, served, chosen.session, quantum), now)
    for service_class in classes:
        longest[service_class] = max(longest[service_class], now - last[service_class])
    return given_to, longest


@settings(max_examples=25)
@given(st.floats(0.02, 0.5), st.integers(1, 100))
def test_prefill_gets_its_share_of_a_saturated_queue(share: float, quantum: int) -> None:
    policy = Policy(shares={PREFILL: share}, longest_wait_s=None)
    given_to, _ = saturated(policy, [DECODE, PREFILL], 1000, quantum, 0.001)
    total = sum(given_to.values())
    assert abs(given_to[PREFILL] / total - share) < 0.005


def test_all_classes_keep_their_shares_together() -> None:
    policy = Policy(shares={REPAIR: 0.25, PREFILL: 0.25, BULK: 0.05}, longest_wait_s=None)
    given_to, _ = saturated(policy, [DECODE, REPAIR, PREFILL, BULK], 8000, 1, 0.001)
    total = sum(given_to.values())
    assert given_to[BULK] / total == pytest.approx(0.05, abs=0.002)
    assert given_to[PREFILL] / (total - given_to[BULK]) == pytest.approx(0.25, abs=0.005)
    before = given_to[DECODE] + given_to[REPAIR]
    assert given_to[REPAIR] / before == pytest.approx(0.25, abs=0.005)


def test_repair_does_not_shut_prefill_out() -> None:
    given_to, _ = saturated(Policy(longest_wait_s=None), [REPAIR, PREFILL], 4000, 1, 0.001)
    assert given_to[PREFILL] / 4000 == pytest.approx(0.25, abs=0.005)


@settings(max_examples=25)
@given(st.floats(0.1, 5.0), st.floats(0.001, 0.3))
def test_no_wait_is_longer_than_the_bound_and_a_quantum(bound_s: float, service_s: float) -> None:
    policy = Policy(shares={}, longest_wait_s=bound_s)
    given_to, longest = saturated(policy, [DECODE, PREFILL], 400, 7, service_s)
    assert longest[PREFILL] <= bound_s + service_s + 1e-9
    assert given_to[DECODE] > 0


def test_without_the_bound_and_the_share_prefill_starves() -> None:
    given_to, longest = saturated(WITHOUT_CREDIT, [DECODE, PREFILL], 1000, 1, 0.1)
    assert given_to[PREFILL] == 0
    assert longest[PREFILL] == pytest.approx(100.0)


def test_credit_is_not_saved_by_those_who_do_not_wait() -> None:
    queue: FairQueue[int] = FairQueue(Policy(longest_wait_s=None))
    queue.push(entry(1, DECODE, b"a", 1000))
    queue.pop()
    queue.push(entry(2, PREFILL, b"b", 1))
    queue.push(entry(3, DECODE, b"a", 2))
    assert queue.pop().item == 3
    assert queue.credit(PREFILL) == pytest.approx(2 / 3)


# ---- fair among clients


clients = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 50)), min_size=2, max_size=5)


@settings(max_examples=60)
@given(clients, st.integers(50, 400))
def test_service_of_clients_that_always_wait_differs_by_two_charges(
    crowd: list[tuple[int, int]], rounds: int
) -> None:
    """`crowd`: of each client, how many sessions it has and what each entry costs."""
    queue: FairQueue[int] = FairQueue()
    for number, (sessions, cost) in enumerate(crowd):
        for session in range(sessions):
            queue.push(entry(number, PREFILL, b"%d-%d" % (number, session), cost, str(number)))
    received = [0] * len(crowd)
    largest = max(cost for _, cost in crowd)
    for _ in range(rounds):
        chosen = queue.pop()
        received[chosen.item] += chosen.cost
        queue.push(chosen)
        assert max(received) - min(received) <= 2 * largest


def test_sixteen_sessions_get_no_more_than_one() -> None:
    queue: FairQueue[int] = FairQueue()
    for session in range(16):
        queue.push(entry(0, DECODE, b"many-%d" % session, 1, "many"))
    queue.push(entry(1, DECODE, b"single", 1, "single"))
    received = [0, 0]
    for _ in range(1000):
        chosen = queue.pop()
        received[chosen.item] += 1
        queue.push(chosen)
    assert abs(received[0] - received[1]) <= 2


@settings(max_examples=25)
@given(st.integers(1, 500))
def test_idleness_earns_nothing(idle_rounds: int) -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push(entry(0, PREFILL, b"busy", 1, "busy"))
    for _ in range(idle_rounds):
        queue.push(queue.pop())
    queue.push(entry(1, PREFILL, b"back", 1, "idle"))
    order = []
    for _ in range(10):
        chosen = queue.pop()
        order.append(chosen.item)
        queue.push(chosen)
    assert abs(order.count(0) - order.count(1)) <= 2


def test_a_debt_outlives_a_pause() -> None:
    """Who was served while others waited cannot come back as a newcomer."""
    queue: FairQueue[int] = FairQueue()
    queue.push(entry(0, PREFILL, b"a", 100, "greedy"))
    queue.push(entry(1, PREFILL, b"b", 1, "modest"))
    first = queue.pop()
    assert first.item == 0
    queue.push(entry(0, PREFILL, b"a", 100, "greedy"))
    modest = 0
    while (chosen := queue.pop()).item == 1:
        modest += 1
        queue.push(chosen)
    assert modest in (99, 100, 101)


def test_a_thousand_identities_of_one_group_get_one_groups_share() -> None:
    def group_of(client: str) -> tuple[str, ...]:
        return ("198.51.100.0/24" if client.startswith("sybil") else "192.0.2.0/24", client)

    queue: FairQueue[int] = FairQueue(group_of=group_of)
    for number in range(1000):
        queue.push(entry(0, PREFILL, b"sybil-%d" % number, 1, f"sybil-{number}"))
    queue.push(entry(1, PREFILL, b"honest", 1, "honest"))
    received = [0, 0]
    for _ in range(3000):
        chosen = queue.pop()
        received[chosen.item] += 1
        queue.push(chosen)
    assert abs(received[0] - received[1]) <= 2


def test_new_identities_leave_no_memory_behind() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(5000):
        queue.push(entry(0, PREFILL, b"%d" % number, 1, f"client-{number}"))
        queue.pop()
    (tree,) = [tree for tree in queue._trees if tree._root.children]
    assert len(tree._root.children) < 2000
    assert len(tree._root.heap) < 5000


def test_a_held_session_waits_for_the_release() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(3):
        queue.push(entry(number, PREFILL, b"a"))
    queue.push(entry(3, PREFILL, b"b", 5))
    first = queue.peek()
    assert first is not None
    queue.hold(first)
    queue.finish(first)
    assert queue.pop().item == 3
    queue.push(entry(4, DECODE, b"a"))
    assert queue.peek() is None
    queue.release()
    assert [queue.pop().item for _ in range(3)] == [1, 2, 4]
    other = entry(5, PREFILL, b"c")
    queue.push(other)
    queue.hold(other)
    queue.finish(other)
    queue.push(entry(6, DECODE, b"c"))
    assert queue.peek() is None
    queue.release()
    assert queue.pop().item == 6
    assert len(queue) == 0
