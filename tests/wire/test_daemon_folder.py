"""The folder of a daemon: whoever cannot fill it leaves nothing behind."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.errors import UsageError
from swarm.wire.daemon_folder import DaemonFolder
from swarm.wire.identity import Identity


class UnwritableIdentity(Identity):
    """Its key file is the first thing that a full disk has no room for."""

    def save(self, path: Path, *, replace: bool = True) -> None:
        raise UsageError(f"cannot write the identity file {path}: No space left on device")


@pytest.fixture(autouse=True)
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # a short path, as a socket's has to be
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_full_disk_leaves_neither_folders_nor_open_files(parent: Path) -> None:
    before = open_files()
    for _ in range(3):
        with pytest.raises(UsageError, match="No space left"):
            DaemonFolder(UnwritableIdentity(b"k" * 32))
    assert list(parent.iterdir()) == []
    assert len(open_files()) == len(before)


def test_a_folder_is_whole_until_it_is_removed(parent: Path) -> None:
    folder = DaemonFolder(Identity(b"k" * 32))
    other = DaemonFolder(Identity(b"o" * 32))
    assert Identity.load(folder.key_file).peer_id == Identity(b"k" * 32).peer_id
    folder.remove()
    folder.remove()
    assert list(parent.iterdir()) == [other.path]
    other.remove()
