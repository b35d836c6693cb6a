"""Free pages as runs: what a list of all pages would give, without walking it."""

from hypothesis import given
from hypothesis import strategies as st

from swarm.server.free_pages import FreePages


def by_walking(free: list[int], count: int) -> list[int]:
    """The first of the smallest runs that suffice, else the first pages that there are."""
    begins = [at for at, page in enumerate(free) if at == 0 or free[at - 1] != page - 1]
    ends = [*begins, len(free)][1:]
    sizes = [(end - begin, begin) for begin, end in zip(begins, ends, strict=True)]
    _, first = min((one for one in sizes if one[0] >= count), default=(0, 0))
    return free[first : first + count]


@given(st.integers(0, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=30))
def test_pages_are_given_as_by_walking_all_of_them(
    total: int, steps: list[tuple[bool, int]]
) -> None:
    pages, free, taken = FreePages(total), list(range(total)), []
    for takes, number in steps:
        if takes and number <= len(free):
            expected = by_walking(free, number)
            assert pages.take(number) == expected
            free = [page for page in free if page not in expected]
            taken.append(expected)
        elif taken:
            given_back = taken.pop(number % len(taken))
            pages.give_back(reversed(given_back))
            free = sorted([*free, *given_back])
        assert list(pages) == free
        assert pages.count == len(free)


def test_one_run_is_left_when_all_have_come_back() -> None:
    pages = FreePages(100_000)
    sessions = [pages.take(30) for _ in range(1000)]
    for session in (*sessions[::2], *sessions[1::2]):
        pages.give_back(session)
    assert pages._runs == [(0, 100_000)]
