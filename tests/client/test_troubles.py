"""Which servers a client leaves out, and for how long."""

from swarm.client.troubles import FADE_S, FIRST_S, MAX_S, Troubles
from swarm.spans import PeerId

ONE, OTHER = PeerId("server-1"), PeerId("server-2")


def heard(**ago_s: float | None):
    return lambda peer: ago_s[peer.replace("-", "_")]


def test_only_who_failed_is_left_out_and_not_for_long() -> None:
    troubles = Troubles()
    troubles.failed(ONE, 100.0)
    troubles.failed(ONE, 100.5)
    assert troubles.left_out(100.0 + 0.9 * FIRST_S) == {ONE}
    assert troubles.left_out(100.0 + FIRST_S) == set()


def test_each_further_failure_takes_twice_as_long_up_to_a_limit() -> None:
    troubles, now, took = Troubles(), 0.0, []
    for _ in range(8):
        troubles.failed(ONE, now)
        began = now
        while troubles.left_out(now):
            now += 0.25
        took.append(now - began)
    assert took == [2.0, 4.0, 8.0, 16.0, 32.0, MAX_S, MAX_S, MAX_S]


def test_who_fails_for_days_is_left_out_as_for_hours() -> None:
    troubles, now = Troubles(), 0.0
    for _ in range(3000):
        troubles.failed(ONE, now)
        now += MAX_S
    assert troubles.left_out(now - 1.0) == {ONE}
    assert troubles.left_out(now) == set()


def test_failures_fade_and_serving_forgives_them_all() -> None:
    troubles = Troubles()
    for now in (0.0, 3.0, 8.0):
        troubles.failed(ONE, now)
    let_in_again = 8.0 + 4 * FIRST_S
    assert troubles.left_out(let_in_again - 0.1) == {ONE}
    troubles.failed(ONE, let_in_again + 2 * FADE_S)
    assert troubles.left_out(let_in_again + 2 * FADE_S + FIRST_S) == set()
    troubles.failed(ONE, 1000.0)
    troubles.suspect(OTHER, 1000.0)
    troubles.served(ONE)
    troubles.served(OTHER)
    assert troubles.left_out(1000.0) == set()
    assert troubles.suspected(1000.5, heard(server_2=1.0)) == set()


def test_who_has_failed_long_ago_is_forgotten() -> None:
    """Else a client that runs for months remembers every name that anybody ever announced."""
    troubles = Troubles()
    for number in range(1000):
        for now in (float(number), number + MAX_S, number + 2 * MAX_S):
            troubles.failed(PeerId(f"made-up-{number}"), now)
    later = 1000.0 + 4 * MAX_S + 10 * FADE_S
    troubles.failed(ONE, later)
    assert troubles._records.keys() == {ONE}
    assert troubles.left_out(later) == {ONE}


def test_a_server_that_keeps_us_waiting_is_left_out_until_something_comes_from_it() -> None:
    """Who is frozen says nothing; who was slow once does, and is not punished for it."""
    troubles = Troubles()
    troubles.suspect(ONE, 10.0)
    troubles.suspect(OTHER, 10.0)
    assert troubles.suspected(10.5, heard(server_1=0.6, server_2=0.2)) == {ONE}
    assert troubles.suspected(13.0, heard(server_1=3.1)) == {ONE}
    assert troubles.suspected(14.0, heard(server_1=0.1)) == set()
    assert troubles.left_out(14.0) == set()


def test_a_suspect_whose_link_goes_has_failed() -> None:
    troubles = Troubles()
    troubles.suspect(ONE, 10.0)
    assert troubles.suspected(13.5, heard(server_1=None)) == set()
    assert troubles.left_out(13.5) == {ONE}
