import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swarm.errors import CacheFullError, SessionFullError, SessionLostError, StepRejectedError
from swarm.models.packed_attention import PassRow
from swarm.server.kv_cache import PagedCache
from swarm.spans import SessionId

LAYERS = [(1, 1, 1), (2, 3, 2)]
PAGE = 4


def make_cache(tokens: int = 64) -> PagedCache:
    return PagedCache(LAYERS, tokens, page_tokens=PAGE)


def name(number: int) -> SessionId:
    return SessionId(bytes([number]) * 16)


def write(cache: PagedCache, parts: list[tuple[SessionId, int, int, list[int]]]) -> list[list[int]]:
    """Append `(session, row, start, values)` in one pass; what each row holds afterwards."""
    rows = [PassRow(cache.row(session, row), start, len(new)) for session, row, start, new in parts]
    kv = cache.begin(rows)
    tokens = torch.tensor([float(value) for *_, values in parts for value in values])
    for layer, (heads, k_dim, v_dim) in enumerate(LAYERS):
        scaled = tokens * (layer + 1)
        kv.write(
            layer,
            scaled.view(1, -1, 1).expand(heads, -1, k_dim),
            -scaled.view(1, -1, 1).expand(heads, -1, v_dim),
        )
    held = []
    for index in range(len(rows)):
        for layer, (heads, k_dim, v_dim) in enumerate(LAYERS):
            keys, values = kv.read(layer, index)
            first = (keys[0, :, 0] / (layer + 1)).round()
            length = rows[index].start + rows[index].count
            assert keys.shape == (heads, length, k_dim)
            assert values.shape == (heads, length, v_dim)
            assert torch.equal(keys, (first * (layer + 1)).view(1, -1, 1).expand_as(keys))
            assert torch.equal(values, (-first * (layer + 1)).view(1, -1, 1).expand_as(values))
        held.append([int(value) for value in first])
    return held


class AgainstLists(RuleBasedStateMachine):
    """The cache does what lists of values would do, and its accounts are exact."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = make_cache()
        self.sessions: dict[SessionId, list[list[int]]] = {}
        self.lengths: dict[SessionId, int] = {}
        self.next_value = 1

    @rule(number=st.integers(0, 5), rows=st.integers(1, 3), length=st.integers(1, 14))
    def reserve(self, number: int, rows: int, length: int) -> None:
        session = name(number)
        if session in self.sessions:
            return
        cost, free = self.cache.tokens_for(rows, length), self.cache.free_tokens
        assert cost >= rows * length
        if cost > free:
            with pytest.raises(CacheFullError):
                self.cache.reserve(session, rows, length)
            assert self.cache.free_tokens == free
        else:
            self.cache.reserve(session, rows, length)
            assert self.cache.free_tokens == free - cost
            self.sessions[session] = [[] for _ in range(rows)]
            self.lengths[session] = length

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        assert self.cache.release(session)
        assert not self.cache.release(session)
        del self.sessions[session]

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        parts = []
        for session, rows in sorted(self.sessions.items()):
            for row, held in enumerate(rows):
                start = data.draw(st.integers(0, len(held)))
                count = data.draw(st.integers(0, self.lengths[session] - start))
                if count:
                    values = list(range(self.next_value, self.next_value + count))
                    self.next_value += count
                    parts.append((session, row, start, values))
                    held[start:] = values
        if parts:
            found = write(self.cache, parts)
            assert found == [self.sessions[session][row] for session, row, _, _ in parts]

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def fork_and_cut(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.sessions)))
        rows = self.sessions[session]
        parents = data.draw(
            st.none() | st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=len(rows))
        )
        if parents is not None:
            rows = [list(rows[parent]) for parent in parents]
            rows += [[] for _ in range(len(self.sessions[session]) - len(parents))]
        cuts = data.draw(st.none() | st.tuples(*(st.integers(0, len(row)) for row in rows)))
        self.cache.apply(session, parents, cuts)
        if cuts is not None:
            rows = [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
        self.sessions[session] = rows

    @invariant()
    def accounts_are_exact(self) -> None:
        self.cache.validate()
        for session, rows in self.sessions.items():
            assert self.cache.held(session) == tuple(len(row) for row in rows)
        taken = sum(
            self.cache.tokens_for(len(rows), self.lengths[session])
            for session, rows in self.sessions.items()
        )
        assert self.cache.free_tokens == self.cache.total_tokens - taken


TestAgainstLists = AgainstLists.TestCase
TestAgainstLists.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_row_that_was_never_forked_is_read_without_a_copy() -> None:
    cache = make_cache()
    cache.reserve(name(1), 2, 12)
    row = cache.row(name(1), 1)
    for start, count in ((0, 5), (5, 1), (6, 6)):
        kv = cache.begin([PassRow(row, start, count)])
        keys, values = kv.read(1, 0)
        assert keys.untyped_storage().data_ptr() == cache.keys[1].untyped_storage().data_ptr()
        assert values.untyped_storage().data_ptr() == cache.values[1].untyped_storage().data_ptr()


def test_a_long_row_gets_a_contiguous_run_although_smaller_gaps_come_first() -> None:
    cache = make_cache(tokens=10 * PAGE)
    for number in range(4):
        cache.reserve(name(number), 1, 2 * PAGE)
    cache.release(name(0))
    cache.release(name(2))
    cache.release(name(3))
    cache.reserve(name(5), 1, 5 * PAGE)
    home = cache.row(name(5), 0).home
    assert home == list(range(home[0], home[0] + 5))


def test_scattered_pages_serve_as_well() -> None:
    cache = make_cache(tokens=6 * PAGE)
    for number in range(6):
        cache.reserve(name(number), 1, PAGE)
    for number in (0, 2, 4):
        cache.release(name(number))
    cache.reserve(name(9), 1, 3 * PAGE)
    values = list(range(1, 11))
    assert write(cache, [(name(9), 0, 0, values[:3])]) == [values[:3]]
    assert write(cache, [(name(9), 0, 3, values[3:])]) == [values]
    cache.validate()


def test_beams_share_their_prompt_and_never_need_more_than_was_reserved() -> None:
    cache = make_cache(tokens=5 * 3 * PAGE)
    cache.reserve(name(1), 5, 3 * PAGE)
    prompt = list(range(1, 7))
    write(cache, [(name(1), 0, 0, prompt)])
    cache.apply(name(1), [0] * 5, None)
    distinct = {page for row in range(5) for page in cache.row(name(1), row).pages}
    assert len(distinct) == 2
    beams = [list(prompt) for _ in range(5)]
    for step, parents in enumerate([(0, 0, 1, 2, 4), (4, 4, 4, 4, 4), (0, 1, 2, 3, 4)] * 2):
        new = [[100 + 10 * step + row] for row in range(5)]
        starts = len(beams[0])
        found = write(cache, [(name(1), row, starts, new[row]) for row in range(5)])
        beams = [beam + token for beam, token in zip(beams, new, strict=True)]
        assert found == beams
        cache.apply(name(1), parents, None)
        beams = [list(beams[parent]) for parent in parents]
        cache.validate()


def test_two_steps_of_one_row_may_share_a_pass() -> None:
    cache = make_cache()
    cache.reserve(name(1), 1, 8)
    assert write(cache, [(name(1), 0, 0, [1, 2, 3]), (name(1), 0, 3, [4, 5])]) == [
        [1, 2, 3],
        [1, 2, 3, 4, 5],
    ]


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    cache = make_cache()
    with pytest.raises(SessionLostError):
        cache.row(name(1), 0)
    cache.reserve(name(1), 2, 6)
    write(cache, [(name(1), 0, 0, [1, 2])])
    with pytest.raises(StepRejectedError):
        cache.reserve(name(1), 1, 1)
    with pytest.raises(StepRejectedError):
        cache.row(name(1), 2)
    with pytest.raises(StepRejectedError):
        cache.begin([PassRow(cache.row(name(1), 0), 3, 1)])
    with pytest.raises(SessionFullError):
        cache.begin([PassRow(cache.row(name(1), 0), 2, 5)])
    with pytest.raises(StepRejectedError):
        cache.apply(name(1), [0, 2], None)
    with pytest.raises(StepRejectedError):
        cache.apply(name(1), None, [0, 0, 0])
    assert cache.held(name(1)) == (2, 0)
    with pytest.raises(CacheFullError):
        PagedCache(LAYERS, PAGE - 1, page_tokens=PAGE)
    cache.validate()
