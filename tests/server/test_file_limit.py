"""The limit on open files."""

import resource

import pytest

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
