"""One run at a time on one output file."""

import fcntl
import os
from pathlib import Path

from swarm.errors import UsageError


class OutputLock:
    """Held from its making until `release`, or until the process ends, however it ends.

    It is a file of its own, for the output is replaced now and then, and removed with the lock.
    """

    def __init__(self, output: Path) -> None:
        """Raises UsageError if another run holds it; OSError where there can be no file."""
        self._path = output.with_name(f".{output.name}.lock")
        while True:
            self._file = open(self._path, "ab")  # noqa: SIM115 - until `release`
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise UsageError(
                    f"--output {output} is being written by another run of this command; wait for "
                    "its end, or name another file"
                ) from None
            if self._is_at_its_place():
                return
            self._file.close()

    def release(self) -> None:
        """May be called again."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()

    def _is_at_its_place(self) -> bool:
        """Not if its last holder has removed it between our opening and our locking it."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False
