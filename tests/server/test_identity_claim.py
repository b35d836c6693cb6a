"""Keys of servers that cannot be taken: one line says why."""

import errno
import fcntl
import os
from pathlib import Path
from typing import NoReturn

import pytest

from swarm.errors import UsageError
from swarm.server.identity_claim import claim_identity
from swarm.server.status import open_file_count


def test_the_home_of_nobody() -> None:
    with pytest.raises(UsageError, match=r"~nobody-of-this-name/key cannot be kept.* --identity"):
        claim_identity(Path("~nobody-of-this-name/key"))


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some that are shared between machines."""

    def flock(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    before = open_file_count()
    with pytest.raises(UsageError, match=r"cannot be locked: No locks available.* --identity"):
        claim_identity(tmp_path / "key")
    assert open_file_count() == before


def test_a_key_that_another_holds_costs_no_file(tmp_path: Path) -> None:
    held = claim_identity(tmp_path / "key")
    before = open_file_count()
    with pytest.raises(UsageError, match="in use"):
        claim_identity(tmp_path / "key")
    assert open_file_count() == before
    held.release()
    claim_identity(tmp_path / "key").release()
