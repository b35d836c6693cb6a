"""What is kept of a boundary equals what was pushed over it, whatever happens to the rows."""

import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from swarm.sessions.backup import Backup
from swarm.sessions.messages import MAX_LENGTH, RowOperation


def tokens(parts: tuple[object, ...]) -> list[int]:
    return [
        token
        for part in parts
        for token in part.payload[part.first : part.first + part.tokens]  # type: ignore[attr-defined]
    ]


@given(st.data())
def test_reading_gives_what_was_appended(data: st.DataObject) -> None:
    backup, rows, label = Backup(keep=True), [[] for _ in range(data.draw(st.integers(1, 3)))], 0
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            counts = tuple(data.draw(st.integers(0, 4)) for _ in rows)
            starts = tuple(map(len, rows))
            payload = list(range(label, label := label + sum(counts)))
            backup.append(starts, counts, tuple(payload), payload, len(payload))
            first = 0
            for row, count in zip(rows, counts, strict=True):
                row += payload[first : first + count]
                first += count
        else:
            parents = tuple(
                data.draw(st.integers(0, len(rows) - 1))
                for _ in range(data.draw(st.integers(1, 4)))
            )
            rows = [list(rows[parent]) for parent in parents]
            keep = tuple(data.draw(st.integers(0, len(row))) for row in rows)
            for row, length in zip(rows, keep, strict=True):
                del row[length:]
            backup.apply(RowOperation(parents=parents, truncate_to=keep))
        assert backup.begins(tuple(map(len, rows))) == (0,) * len(rows)
        starts = tuple(data.draw(st.integers(0, len(row))) for row in rows)
        counts = tuple(
            data.draw(st.integers(0, len(row) - start))
            for row, start in zip(rows, starts, strict=True)
        )
        found = backup.read(starts, counts)
        assert found is not None
        wanted = [
            token
            for row, start, count in zip(rows, starts, counts, strict=True)
            for token in row[start : start + count]
        ]
        assert list(found[0]) == wanted == tokens(found[1])


def test_what_is_not_kept_is_not_read() -> None:
    backup = Backup(keep=True)
    backup.append((0,), (3,), (0, 1, 2), [0, 1, 2], 3)
    assert backup.read((1,), (3,)) is None
    assert backup.read((0, 0), (1, 1)) is None
    backup.evict()
    assert not backup.kept
    assert backup.read((0,), (1,)) is None
    assert backup.begins((3,)) is None
    backup.append((3,), (1,), (3,), [3], 1)
    assert backup.size_bytes() == 0


def test_a_backup_that_began_late_says_from_where() -> None:
    backup = Backup(keep=True)
    backup.append((5,), (3,), (5, 6, 7), [5, 6, 7], 3)
    assert backup.begins((8,)) == (5,)
    assert backup.begins((9,)) == (9,)


class Unwalked(list[Any]):
    """Segments that nobody may look through: there may be very many, and what asks is small."""

    __iter__ = __reversed__ = None  # type: ignore[assignment]


def test_nobody_walks_all_segments_to_find_some_or_where_they_begin() -> None:
    backup = Backup(keep=True)
    for slot in range(9):
        backup.append((slot,), (1,), (slot,), [slot], 1)
    assert backup._rows is not None
    backup._rows = [Unwalked(row) for row in backup._rows]
    assert backup.begins((9,)) == (0,)
    found = backup.read((4,), (2,))
    assert found is not None and found[0] == (4, 5)


def test_shared_payloads_are_counted_once_and_until_the_last_row_lets_go() -> None:
    backup = Backup(keep=True)
    backup.append((0,), (2,), (0, 1), "payload", 100)
    backup.apply(RowOperation(parents=(0, 0, 0)))
    assert backup.size_bytes() == 100
    backup.apply(RowOperation(truncate_to=(0, 1, 0)))
    assert backup.size_bytes() == 100
    backup.apply(RowOperation(truncate_to=(0, 0, 0)))
    assert backup.size_bytes() == 0


def test_a_fork_of_rows_that_do_not_exist_costs_nothing() -> None:
    backup = Backup(keep=True)
    tracemalloc.start()
    backup.apply(RowOperation(parents=(MAX_LENGTH, 0)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 16
    backup.append((0, 0), (1, 2), (0, 0, 1), "payload", 10)
    assert backup.begins((1, 2)) == (0, 0)
