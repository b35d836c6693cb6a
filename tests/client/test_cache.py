"""The cache against a server that keeps plain lists of tokens, under any sequence of operations."""

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.cache import RemoteCache
from swarm.errors import SessionClosedError, SessionFullError, SessionLostError


class ListChain:
    """Keeps each row's tokens; a token's answer is the sum of its row up to there."""

    route = ()

    def __init__(self, rows, length):
        self.max_rows, self.length = rows, length
        self.rows = None
        self.closed = 0
        self.fails = None
        self.steps = 0

    def step(self, step):
        self.steps += 1
        if self.fails is not None:
            raise self.fails
        if self.rows is None:
            self.rows = [[] for _ in step.counts]
        if step.operation is not None:
            if step.operation.parents is not None:
                self.rows = [list(self.rows[parent]) for parent in step.operation.parents]
            for row, keep in zip(self.rows, step.operation.truncate_to or (), strict=False):
                assert keep <= len(row)
                del row[keep:]
        assert len(self.rows) == len(step.counts) <= self.max_rows
        assert step.starts == tuple(map(len, self.rows))
        tokens = [int(token) for token in step.hidden[:, 0]]
        assert list(step.position_ids) == [token % 7 for token in tokens]
        answers = []
        for row, count in zip(self.rows, step.counts, strict=True):
            mine, tokens = tokens[:count], tokens[count:]
            sums = [sum(row) + sum(mine[: i + 1]) for i in range(count)]
            row += mine
            assert len(row) <= self.length
            answers += sums[max(0, count - step.keep) :]
        return torch.tensor(answers, dtype=torch.float32)[:, None]

    def close(self):
        self.closed += 1


class Caches:
    def __init__(self, **options):
        self.chains = []
        self.cache = RemoteCache(self._open, **options)

    def _open(self, rows, length, least):
        self.chains.append(ListChain(rows, length))
        return self.chains[-1]

    @property
    def chain(self):
        return self.chains[-1]

    def feed(self, ids, valid=None, keep=None):
        return self.cache.step(
            ids.float()[:, :, None],
            position_ids=ids % 7,
            valid=valid,
            input_ids=ids,
            keep=keep or ids.shape[1],
        )


@st.composite
def programs(draw):
    rows = draw(st.integers(1, 3))
    operations = []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["feed", "feed", "crop", "reorder", "repeat", "select"]))
        if kind == "feed":
            columns = draw(st.integers(1, 4))
            ids = draw(
                st.lists(st.integers(1, 50), min_size=rows * columns, max_size=rows * columns)
            )
            valid = draw(
                st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)
                | st.none()
            )
            shape = (rows, columns)
            operations.append(
                (
                    "feed",
                    torch.tensor(ids).reshape(shape),
                    None if valid is None else torch.tensor(valid).reshape(shape),
                )
            )
        elif kind == "crop":
            operations.append(("crop", draw(st.integers(0, 6))))
        elif kind == "reorder":
            indices = draw(st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows))
            operations.append(("select", torch.tensor(indices)))
        elif kind == "repeat" and rows < 4:
            operations.append(("repeat", 2))
            rows *= 2
        elif kind == "select":
            indices = draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=rows))
            operations.append(("select", torch.tensor(indices)))
            rows = len(indices)
    return operations


@given(programs())
def test_any_operations(program):
    world = Caches(length=1000, rows=16)
    ids = valid = None
    for kind, *arguments in program:
        if kind == "feed":
            new, padding = arguments
            mask = torch.ones(new.shape, dtype=torch.bool) if padding is None else padding
            ids = new if ids is None else torch.cat([ids, new], dim=1)
            valid = mask if valid is None else torch.cat([valid, mask], dim=1)
            answers = world.feed(new, padding)
            sums = (ids * valid).cumsum(dim=1)[:, -new.shape[1] :]
            assert torch.equal(answers[:, :, 0].long(), sums * mask)
        elif kind == "crop":
            world.cache.crop(-arguments[0])
            if ids is not None:
                width = max(0, ids.shape[1] - arguments[0])
                ids, valid = ids[:, :width], valid[:, :width]
        elif ids is None:
            # Nothing is held: the rows are not made yet, and the next feed makes them.
            return
        elif kind == "repeat":
            world.cache.batch_repeat_interleave(arguments[0])
            ids, valid = (one.repeat_interleave(arguments[0], dim=0) for one in (ids, valid))
        else:
            world.cache.reorder_cache(arguments[0])
            ids, valid = ids[arguments[0]], valid[arguments[0]]
        assert world.cache.get_seq_length() == (0 if ids is None else ids.shape[1])
    held = world.chain.rows if world.chains and world.chain.rows else None
    if held is not None and program[-1][0] == "feed" and bool(valid[:, -1:].any()):
        assert held == [row[keep].tolist() for row, keep in zip(ids, valid, strict=True)]


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=3),
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=3),
)
def test_alignment(held, wanted):
    """What is kept is a prefix of what is wanted, and at least one column is left to compute."""

    def padded(rows):
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        return ids, ids != 0

    world = Caches(length=100, rows=8)
    ids, mask = padded(held)
    world.feed(ids, mask)
    ids, mask = padded(wanted)
    world.cache.align(ids, mask)
    kept = world.cache.get_seq_length()
    assert kept < ids.shape[1]
    answers = world.feed(ids[:, kept:], mask[:, kept:])
    assert world.chain.rows == wanted
    assert torch.equal(answers[:, -1, 0].long(), ids.sum(dim=1))


def test_a_session_is_opened_by_its_first_step():
    world = Caches(length=8, rows=3)
    assert world.chains == []
    assert world.cache.batch_size == -1
    world.feed(torch.tensor([[1, 2]]))
    assert (world.chain.max_rows, world.chain.length) == (3, 8)


def test_too_many_tokens():
    world = Caches(length=3)
    with pytest.raises(SessionFullError, match="4 tokens"):
        world.feed(torch.tensor([[1, 2, 3, 4]]))
    assert world.chains == []
    world.feed(torch.tensor([[1, 2, 3]]))
    with pytest.raises(SessionFullError, match="max_length"):
        world.feed(torch.tensor([[4]]))
    world.cache.crop(-1)
    world.feed(torch.tensor([[4]]))
    assert world.chain.rows == [[1, 2, 4]]


def test_a_failed_step_ends_the_session():
    world = Caches(length=8)
    world.feed(torch.tensor([[1]]))
    world.chain.fails = SessionLostError("gone")
    with pytest.raises(SessionLostError):
        world.feed(torch.tensor([[2]]))
    assert world.chain.closed
    with pytest.raises(SessionClosedError, match="gone"):
        world.feed(torch.tensor([[2]]))


def test_the_collector_frees_the_servers():
    world = Caches(length=8)
    world.feed(torch.tensor([[1]]))
    chain = world.chain
    del world
    gc.collect()
    assert chain.closed


def test_a_step_of_padding_alone_does_not_travel():
    world = Caches(length=8)
    nothing = torch.zeros((1, 2), dtype=torch.bool)
    assert world.feed(torch.tensor([[5, 5]]), nothing).abs().sum() == 0
    assert world.chain.steps == 0
    world.feed(torch.tensor([[1]]))
    assert world.chain.rows == [[1]]


@pytest.mark.parametrize("copies", [1, 2])
def test_after_a_reset_there_may_be_other_rows(copies):
    world = Caches(length=8, rows=4)
    world.feed(torch.tensor([[1], [2], [3]]))
    world.cache.reset()
    world.cache.expect_copies(copies)
    ids = torch.tensor([[4, 5]] * copies)
    assert world.feed(ids)[:, :, 0].tolist() == [[4, 9]] * copies
    world.feed(torch.tensor([[6]] * copies))
    assert world.chain.rows == [[4, 5, 6]] * copies


def test_crop_takes_negative_numbers():
    with pytest.raises(ValueError, match="negative"):
        Caches(length=8).cache.crop(1)
