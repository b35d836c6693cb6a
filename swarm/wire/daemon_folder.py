"""The folder of one daemon: its sockets, and its key file while it starts.

A process that is killed leaves its folder behind. Whoever lives holds a lock in its own, so the
next one to start can tell, and removes what is left.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from swarm.wire.identity import Identity

_PREFIX = "swarm-"
_LOCK = "lock"
_MAX_LENGTH = 70
"""The path of a Unix socket may have 107 bytes."""


class DaemonFolder:
    """A folder that only we can enter."""

    def __init__(self, identity: Identity) -> None:
        """Makes the folder and puts the key file into it."""
        parent = tempfile.gettempdir()
        if len(os.fsencode(parent)) > _MAX_LENGTH:
            parent = "/tmp"
        remove_abandoned_folders(Path(parent))
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        self.key_file = self.path / "identity"
        self._lock = -1
        try:
            self._lock = os.open(self.path / f".{_LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            (self.path / f".{_LOCK}").rename(self.path / _LOCK)  # never seen without its lock
            identity.save(self.key_file)
        except BaseException:
            self.remove()  # a full disk is tried again and again
            raise

    def forget_key(self) -> None:
        """The daemon has read the key file; it need not lie there any longer."""
        self.key_file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes everything; may be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def remove_abandoned_folders(parent: Path) -> None:
    """Removes the daemons' folders in `parent` that are ours and that no living process holds."""
    for lock in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            if lock.parent.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # gone meanwhile, or not ours to look at
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            continue  # held: its process lives
        finally:
            os.close(descriptor)
