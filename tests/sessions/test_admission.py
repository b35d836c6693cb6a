"""A server's room: who gets it when, and that all of it comes back."""

from hypothesis import given
from hypothesis import strategies as st
from session_samples import make_grant

from swarm.sessions.admission import MAX_OVERTAKES, Admission, Decision, headroom_tokens
from swarm.spans import SessionId


def name(number: int) -> SessionId:
    return SessionId(bytes([number]) * 16)


def test_rows_are_rounded_up_to_pages() -> None:
    assert Admission(1000, page_tokens=16).tokens_of(make_grant(rows=3, length=17)) == 96
    with_state = Admission(1000, page_tokens=16, row_tokens=20)
    assert with_state.tokens_of(make_grant(rows=3, length=17)) == 144


def test_room_is_given_refused_and_given_back() -> None:
    admission = Admission(100)
    assert admission.request(name(1), 60, 0.0, 0.0) is True
    assert admission.request(name(1), 60, 0.0, 0.0) is True
    assert admission.request(name(2), 60, 0.0, 0.0) is False
    assert admission.free_tokens == 40
    assert admission.release(name(1)) == Decision()
    assert admission.release(name(1)) == Decision()
    assert admission.free_tokens == 100


class Unwalked(dict):
    """Rooms that nobody may look through: there may be very many, and one is asked for often."""

    values = items = __iter__ = None


def test_nobody_walks_all_rooms_for_one_that_comes_or_goes() -> None:
    admission = Admission(1000, headroom_tokens=10)
    admission._rooms = Unwalked()
    for number in range(10):
        assert admission.request(name(number), 90, 0.0, 0.0, str(number % 3)) is True
    assert admission.request(name(20), 600, 9.0, 0.0, "0") is None
    assert admission.request(name(21), 90, 9.0, 0.0, "1") is True
    assert admission.release(name(0)).admitted == ()
    assert admission.tick(10.0).expired == (name(20),)
    assert admission.free_tokens == 100


def test_the_line_is_served_in_order() -> None:
    admission = Admission(100)
    admission.request(name(1), 60, 0.0, 0.0)
    assert admission.request(name(2), 80, 9.0, 0.0) is None
    assert admission.request(name(3), 50, 9.0, 0.0) is None
    assert admission.request(name(4), 50, 0.0, 0.0) is False
    assert admission.release(name(1)) == Decision(admitted=(name(2),))
    assert admission.release(name(2)) == Decision(admitted=(name(3),))


def test_small_sessions_overtake_a_large_one_a_few_times() -> None:
    admission = Admission(100)
    admission.request(name(1), 60, 0.0, 0.0)
    assert admission.request(name(2), 80, 9.0, 0.0) is None
    for _ in range(MAX_OVERTAKES):
        assert admission.request(name(3), 10, 0.0, 0.0) is True
        admission.release(name(3))
    assert admission.request(name(3), 10, 0.0, 0.0) is False
    assert admission.request(name(3), 10, 9.0, 0.0) is None
    assert admission.release(name(1)) == Decision(admitted=(name(2), name(3)))


def test_who_has_more_than_half_lets_others_go_first() -> None:
    admission = Admission(100)
    assert admission.request(name(1), 60, 0.0, 0.0, "one") is True
    assert admission.request(name(2), 40, 0.0, 0.0, "one") is True
    assert admission.request(name(3), 20, 9.0, 0.0, "one") is None
    assert admission.request(name(4), 40, 9.0, 0.0, "two") is None
    assert admission.release(name(2)) == Decision(admitted=(name(4),))
    assert admission.release(name(4)) == Decision(admitted=(name(3),))


def test_waiting_ends_at_the_deadline_and_lets_the_next_in() -> None:
    admission = Admission(100)
    admission.request(name(1), 60, 0.0, 0.0, "one")
    admission.request(name(2), 80, 5.0, 0.0, "two")
    admission.request(name(3), 40, 9.0, 0.0, "one")
    assert admission.deadline == 5.0
    assert admission.tick(4.9) == Decision()
    assert admission.tick(5.0) == Decision(admitted=(name(3),), expired=(name(2),))


def test_who_leaves_the_line_makes_room_in_it() -> None:
    admission = Admission(100)
    admission.request(name(1), 60, 0.0, 0.0)
    for number in range(10, 10 + MAX_OVERTAKES):
        admission.request(name(2), 80, 5.0, 0.0)
        admission.request(name(number), 1, 5.0, 0.0)
    assert admission.request(name(3), 20, 9.0, 0.0) is None
    assert admission.release(name(2)) == Decision(admitted=(name(3),))


def test_what_can_never_fit_does_not_wait() -> None:
    assert Admission(100).request(name(1), 101, 9.0, 0.0) is False


def test_a_session_that_lost_a_server_finds_room_where_a_new_one_does_not() -> None:
    admission = Admission(100, headroom_tokens=20)
    assert admission.request(name(1), 70, 0.0, 0.0) is True
    assert admission.request(name(2), 20, 0.0, 0.0) is False
    assert admission.request(name(2), 20, 9.0, 0.0) is None
    assert admission.request(name(3), 25, 0.0, 0.0, repair=True) is True
    assert admission.release(name(3)) == Decision()
    assert admission.release(name(1)) == Decision(admitted=(name(2),))


def test_who_needs_everything_has_it_when_nobody_else_is_there() -> None:
    admission = Admission(100, headroom_tokens=20)
    assert admission.request(name(1), 100, 0.0, 0.0) is True
    admission.release(name(1))
    admission.request(name(2), 10, 0.0, 0.0)
    assert admission.request(name(1), 100, 9.0, 0.0) is None
    assert admission.release(name(2)) == Decision(admitted=(name(1),))


def test_a_small_cache_keeps_nothing_back() -> None:
    assert headroom_tokens(64 * 15, 64) == 0
    assert headroom_tokens(64 * 40, 64) == 128


def test_an_unused_session_gives_way_to_one_that_fits_then() -> None:
    admission = Admission(100, headroom_tokens=10)
    admission.request(name(1), 30, 0.0, 0.0, "one")
    admission.request(name(2), 20, 0.0, 0.0, "two")
    admission.request(name(3), 20, 0.0, 0.0, "two")
    unused = [name(1), name(3), name(2), name(9)]
    assert admission.gives_way(unused) is None, "nobody waits"
    admission.request(name(4), 60, 9.0, 0.0, "three")
    assert admission.gives_way([name(1)]) is None, "it would not be enough"
    assert admission.gives_way(unused) == name(3), "of who has most, the longest unused"
    assert admission.gives_way([name(1), name(3)]) == name(3)
    assert admission.release(name(3)) == Decision()
    assert admission.gives_way([name(1), name(2)]) == name(1)
    assert admission.release(name(1)).admitted == (name(4),)


def test_nobodys_session_gives_way_to_another_of_his_own() -> None:
    admission = Admission(100)
    admission.request(name(1), 90, 0.0, 0.0, "one")
    admission.request(name(2), 50, 9.0, 0.0, "one")
    assert admission.gives_way([name(1)]) is None
    admission.request(name(3), 40, 9.0, 0.0, "two")
    assert admission.gives_way([name(1)]) == name(1)


@given(
    st.integers(0, 40),
    st.lists(
        st.tuples(
            st.sampled_from(("request", "release", "tick")),
            st.integers(0, 5),
            st.integers(1, 120),
            st.floats(0, 3),
        ),
        max_size=60,
    ),
)
def test_the_books_are_always_right(
    headroom: int, steps: list[tuple[str, int, int, float]]
) -> None:
    admission, now = Admission(100, headroom_tokens=headroom), 0.0
    for what, number, tokens, wait_s in steps:
        now += 0.5
        if what == "request":
            client = "ab"[number % 2]
            admission.request(name(number), tokens, wait_s, now, client, repair=number > 3)
        elif what == "release":
            admission.release(name(number))
        else:
            admission.tick(now)
        admission.validate()
    for number in range(6):
        admission.release(name(number))
    admission.tick(now + 10)
    for number in range(6):
        admission.release(name(number))
    assert admission.free_tokens == 100
    assert not admission.line
