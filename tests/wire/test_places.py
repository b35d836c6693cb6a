"""Places for peers, of which no group can take all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.scheduling.service_counters import KNOWN, Path
from swarm.wire.places import Places

groups = st.sampled_from([("a",), ("b",), ("c",), (KNOWN, "friends")])


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 60), groups)))
def test_a_group_gets_no_place_while_it_has_more_than_a_quarter_of_what_is_free(
    count: int, script: list[tuple[bool, int, Path]]
) -> None:
    places, holders = Places[int](count), dict[int, Path]()
    for comes, holder, group in script:
        if comes and holder not in holders:
            free, has = count - len(holders), list(holders.values()).count(group)
            room = places.has_room(group)
            assert room == (free > 0 and (group[0] == KNOWN or has <= free // 4))
            if room:
                places.take(holder, group)
                holders[holder] = group
        elif not comes:
            places.give_back(holder)
            holders.pop(holder, None)
        assert len(places) == len(holders) <= count


@pytest.mark.parametrize("count", [1, 2, 7, 256, 2048])
def test_one_group_takes_a_fifth_and_many_are_needed_to_take_all(count: int) -> None:
    places = Places[int](count)
    holders = iter(range(10 * count))

    def fill(group: Path) -> int:
        before = len(places)
        while places.has_room(group):
            places.take(next(holders), group)
        return len(places) - before

    assert count // 5 <= fill(("greedy",)) <= count // 5 + 1
    groups = 1
    while len(places) < count:
        room = count - len(places)
        assert 1 <= fill((f"other-{groups}",)) <= room // 5 + 1
        groups += 1
    assert groups >= (25 if count == 2048 else count // 16)
    assert not places.has_room(("another",))
    assert fill((KNOWN, "friends")) == 0
    places.give_back(0)
    assert not places.has_room(("other-1",)) or count < 5
    assert fill((KNOWN, "friends")) == 1
