"""The limit on open files."""

import errno
import os
import resource

import pytest

from swarm.server.status import open_file_count
from swarm.server.threads import raise_file_limit


def test_the_limit_on_open_files_becomes_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 524_288))
    monkeypatch.setattr(resource, "setrlimit", lambda what, limits: told.append(limits))
    raise_file_limit()
    assert told == [(524_288, 524_288)]


def test_a_limit_that_cannot_be_raised_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(what: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_file_limit()


@pytest.mark.parametrize(("error", "count"), [(errno.EMFILE, 1024), (errno.ENOENT, 0)])
def test_who_asks_when_none_is_left_is_told_so(
    monkeypatch: pytest.MonkeyPatch, error: int, count: int
) -> None:
    """Strangers open streams as they like; telling how many there are must end no server."""

    def refuse(path: str) -> list[str]:
        raise OSError(error, os.strerror(error), path)

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 524_288))
    assert open_file_count() == count
