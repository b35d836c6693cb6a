"""Byte ranges of a remote file, kept on disk: what was fetched once is not fetched again.

A file's folder holds one file for each range, `<start>-<end>`, and `<start>.part` for one that is
on its way. Ranges never overlap. Whoever fetches holds the folder's lock, so a part that is found
under the lock was left by a program that ended, and what it holds is kept.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import Timeout
from huggingface_hub.utils import WeakFileLock

from swarm.errors import CheckpointError

Range = tuple[int, int]
"""`start`, `end` (exclusive), in bytes of the remote file."""

LOCK_POLL_S = 0.5
_KEPT = re.compile(r"(\d{1,18})-(\d{1,18})")
_PART = re.compile(r"(\d{1,18})\.part")


class RangeStore:
    """The ranges of one remote file in `folder`. Several programs may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: list[Range] = []
        self._look()

    def missing(self, wanted: Sequence[Range]) -> list[Range]:
        """What of `wanted` is not here; looks at the folder again only if something is not."""
        gaps = self._gaps(wanted)
        if gaps:
            self._look()
            gaps = self._gaps(wanted)
        return gaps

    def read_into(self, start: int, buffer: memoryview) -> bool:
        """Fill `buffer` with the bytes from `start` on; False if some of them are not here."""
        end = start + len(buffer)
        if self.missing([(start, end)]):
            return False
        for first, last in self._kept:
            begin, stop = max(first, start), min(last, end)
            if begin < stop and not self._read_part(
                (first, last), begin, buffer[begin - start : stop - start]
            ):
                return False
        return True

    @contextmanager
    def locked(self, check: Callable[[], None]) -> Iterator[None]:
        """Alone in the folder; `check` is called while another program is in there."""
        with _disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            check()
            lock = WeakFileLock(self._folder / "lock", timeout=LOCK_POLL_S)
            try:
                with _disk_errors(self._folder):
                    lock.__enter__()
            except Timeout:
                continue
            break
        try:
            self._adopt_parts()
            yield
        finally:
            lock.__exit__(None, None, None)

    @contextmanager
    def writing(self, start: int) -> Iterator["RangeWriter"]:
        """Keeps what is written from `start` on, also when the writing ends with an error.

        Only under `locked`.
        """
        path = self._folder / f"{start}.part"
        with _disk_errors(path):
            file = path.open("wb")
        writer = RangeWriter(file, path)
        try:
            yield writer
        finally:
            with _disk_errors(path):
                try:
                    os.fsync(file.fileno())
                finally:
                    file.close()
                self._finish(path, start, path.stat().st_size)

    def _finish(self, path: Path, start: int, nbytes: int) -> None:
        if nbytes:
            path.replace(self._folder / f"{start}-{start + nbytes}")
        else:
            path.unlink()

    def _adopt_parts(self) -> None:
        with _disk_errors(self._folder):
            for path in self._folder.iterdir():
                if found := _PART.fullmatch(path.name):
                    self._finish(path, int(found[1]), path.stat().st_size)
        self._look()

    def _look(self) -> None:
        """A file whose size is not what its name says is as good as none."""
        found: list[Range] = []
        with suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                if match := _KEPT.fullmatch(path.name):
                    start, end = int(match[1]), int(match[2])
                    if path.stat().st_size == end - start > 0:
                        found.append((start, end))
        self._kept = sorted(found)

    def _gaps(self, wanted: Sequence[Range]) -> list[Range]:
        gaps: list[Range] = []
        for start, end in merged(wanted):
            for first, last in self._kept:
                if last <= start or first >= end:
                    continue
                if first > start:
                    gaps.append((start, first))
                start = last
            if start < end:
                gaps.append((start, end))
        return gaps

    def _read_part(self, kept: Range, start: int, buffer: memoryview) -> bool:
        try:
            with (self._folder / f"{kept[0]}-{kept[1]}").open("rb", buffering=0) as file:
                file.seek(start - kept[0])
                return fill(file, buffer)
        except FileNotFoundError:  # the cache was cleaned up meanwhile
            self._look()
            return False


class RangeWriter:
    """Takes the bytes of one range, in order."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path

    def write(self, data: bytes) -> None:
        with _disk_errors(self._path):
            self._file.write(data)


def merged(ranges: Sequence[Range]) -> list[Range]:
    """The same bytes in as few ranges as possible, in order; empty ranges are left out."""
    found: list[Range] = []
    for start, end in sorted(one for one in ranges if one[0] < one[1]):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def total(ranges: Sequence[Range]) -> int:
    """Bytes in `ranges`, which do not overlap."""
    return sum(end - start for start, end in ranges)


def fill(file: IO[bytes], buffer: memoryview) -> bool:
    """Read until `buffer` is full; False if the (unbuffered) file ends before."""
    filled = 0
    while filled < len(buffer):
        count = file.readinto(buffer[filled:])  # type: ignore[attr-defined]
        if not count:
            return False
        filled += count
    return True


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}); free some space, or choose "
            "another place with HF_HOME"
        ) from error
