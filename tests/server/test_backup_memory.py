"""Backups of all sessions within one limit."""

import pytest

from swarm.server.backup_memory import MIB, BackupMemory, backup_bytes


class Hop:
    """The part of a hop's session that the account looks at."""

    def __init__(self, size: int) -> None:
        self.backup_bytes = size
        self.has_backup = True

    def evict_backup(self) -> bool:
        had, self.has_backup, self.backup_bytes = self.has_backup, False, 0
        return had


def account(limit: int, *sizes: int) -> tuple[BackupMemory, list[Hop]]:
    memory, hops = BackupMemory(limit), [Hop(size) for size in sizes]
    for hop in hops:
        memory.changed(hop)  # type: ignore[arg-type]
    return memory, hops


def test_within_the_limit_all_are_kept() -> None:
    memory, hops = account(10, 4, 6)
    assert (memory.total_bytes, memory.evictions) == (10, 0)
    memory.forget(hops[0])  # type: ignore[arg-type]
    assert memory.total_bytes == 6


def test_the_largest_goes_first_as_a_whole() -> None:
    memory, hops = account(10, 3, 5, 4)
    assert [hop.backup_bytes for hop in hops] == [3, 0, 4]
    assert (memory.total_bytes, memory.evictions) == (7, 1)


def test_as_many_as_needed_go() -> None:
    memory, hops = account(10, 5, 5)
    hops[0].backup_bytes = 30
    memory.changed(hops[0])  # type: ignore[arg-type]
    assert [hop.backup_bytes for hop in hops] == [0, 5]
    assert memory.total_bytes == 5


@pytest.mark.parametrize(
    ("asked", "cache", "limit"),
    [(None, 0, 64 * MIB), (None, 8000 * MIB, 1000 * MIB), (3, 8000 * MIB, 3 * MIB), (0, 1, 0)],
)
def test_the_limit(asked: int | None, cache: int, limit: int) -> None:
    assert backup_bytes(asked, cache) == limit


def test_last_answers_without_a_backup_are_no_backup() -> None:
    memory, hops = account(10, 11)
    hops[0].backup_bytes = 12
    memory.changed(hops[0])  # type: ignore[arg-type]
    assert (hops[0].backup_bytes, memory.total_bytes, memory.evictions) == (0, 0, 1)
