"""A weight file of a hub repository, of which only the ranges that are asked for are fetched.

Where they lie: in `swarm-ranges/`, inside the repository's own folder of the hub's cache
(`HF_HUB_CACHE/models--org--name/`). huggingface_hub looks only at `refs`, `snapshots`, `blobs` and
names of its own in there, so no other program ever takes a range for a whole file, and
`hf cache rm` removes the ranges with the repository. A file that is whole in the cache, because
another program has fetched it, is read there.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from swarm.errors import CheckpointError
from swarm.models.disk_cache import cache_key, write_json
from swarm.models.hub_errors import hub_errors
from swarm.models.hub_ranges import Range, RangeStore, fill, total
from swarm.models.remote_file import FileFacts, RemoteFile

FOLDER = "swarm-ranges"
PIECE_BYTES = 32 << 20
"""A range is fetched in pieces of at most this size."""
CONNECTIONS = 4
"""Pieces that are fetched at the same time."""


class HubShard:
    """A safetensors file of a repository at one commit; see `safetensors_source.ShardFile`."""

    def __init__(self, repository: str, snapshot: Path, name: str) -> None:
        """`snapshot`: huggingface_hub's folder of the files of one commit, and named after it."""
        commit = snapshot.name
        self.label = f"{repository}/{name}"
        self.key = cache_key("hub", repository, commit, name)
        self._whole = snapshot / name
        """Where the file is if it has been fetched as a whole."""
        self._folder = snapshot.parent.parent / FOLDER
        self._facts_file = self._folder / f"{self.key}.json"
        self._remote = RemoteFile(repository, commit, name)

    def is_known(self) -> bool:
        """Whether it, or a part of it, has been fetched before."""
        return self._whole.is_file() or _load_facts(self._facts_file) is not None

    def size(self) -> int:
        return self._whole.stat().st_size if self._whole.is_file() else self._facts.size

    def read(self, start: int, end: int) -> bytes:
        """From here if they are here, else from the hub; then they are not kept."""
        end = min(end, self.size())
        buffer = bytearray(max(0, end - start))
        if self._read_here(start, memoryview(buffer)):
            return bytes(buffer)
        with hub_errors(self.label):
            return self._remote.read(start, end)

    def read_into(self, start: int, buffer: memoryview) -> bool:
        """Fetches first what is not here."""
        if self._read_here(start, buffer):
            return True
        self.fetch([(start, start + len(buffer))], lambda _: None)
        return self._read_here(start, buffer)

    def missing(self, ranges: Sequence[Range]) -> int:
        if self._whole.is_file():
            return 0
        return total(self._store.missing(ranges))

    def fetch(self, ranges: Sequence[Range], arrived: Callable[[int], None]) -> None:
        """Keeps `ranges` on this machine. `arrived(bytes)` is called in several threads."""
        if not self.missing(ranges):
            return
        with hub_errors(self.label), self._store.locked(lambda: arrived(0)):
            gaps = self._store.missing(ranges)
            self._check_room(total(gaps))
            with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="swarm-hub") as threads:
                pieces = [threads.submit(self._fetch_piece, one, arrived) for one in _pieces(gaps)]
                try:
                    for piece in pieces:
                        piece.result()
                finally:
                    threads.shutdown(cancel_futures=True)

    def _fetch_piece(self, piece: Range, arrived: Callable[[int], None]) -> None:
        with self._store.writing(piece[0]) as writer:

            def write(data: bytes) -> None:
                writer.write(data)
                arrived(len(data))

            self._remote.stream(*piece, write)

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise CheckpointError(
                f"{self.label}: {needed / 1e6:,.0f} MB are to be fetched, but only "
                f"{free / 1e6:,.0f} MB are free in {self._folder}; free some space, host fewer "
                "blocks, or choose another place with HF_HOME"
            )

    def _read_here(self, start: int, buffer: memoryview) -> bool:
        if not self._whole.is_file():
            return self._store.read_into(start, buffer)
        with self._whole.open("rb", buffering=0) as file:
            file.seek(start)
            return fill(file, buffer)

    @cached_property
    def _store(self) -> RangeStore:
        """Named by the content, so that revisions share what they have in common."""
        return RangeStore(self._folder / cache_key(self._facts.etag, self._facts.size))

    @cached_property
    def _facts(self) -> FileFacts:
        """As the hub tells them; kept for when it cannot be reached."""
        kept = _load_facts(self._facts_file)
        if kept is not None:
            self._remote.expect(kept)
            return kept
        with hub_errors(self.label):
            facts = self._remote.facts()
        write_json(self._facts_file, [facts.etag, facts.size])
        return facts


def _load_facts(path: Path) -> FileFacts | None:
    try:
        etag, size = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return None
    return FileFacts(etag, size) if isinstance(etag, str) and isinstance(size, int) else None


def _pieces(ranges: Sequence[Range]) -> Iterator[Range]:
    for start, end in ranges:
        for first in range(start, end, PIECE_BYTES):
            yield first, min(first + PIECE_BYTES, end)
