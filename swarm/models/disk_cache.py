"""Small facts about files that are slow to compute, kept in the user's cache folder.

An entry is never wrong, only absent: its key contains what the fact depends on (file size and
time of change, library versions). A cache folder that cannot be written is not an error.
"""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import platformdirs

logger = logging.getLogger(__name__)


def cache_folder(*parts: str) -> Path:
    """A folder below the user's cache folder, not necessarily there yet."""
    return Path(platformdirs.user_cache_dir("swarm")).joinpath(*parts)


def cache_key(*parts: object) -> str:
    """32 hex digits over the parts."""
    return hashlib.blake2b(
        json.dumps([str(part) for part in parts]).encode(), digest_size=16
    ).hexdigest()


def file_key(path: Path) -> str:
    """Names the content of a file by its place, size and time of change."""
    status = path.stat()
    return cache_key(path.resolve(), status.st_size, status.st_mtime_ns)


def load_json(kind: str, key: str) -> Any | None:
    """The value stored under `(kind, key)`, or None."""
    try:
        return json.loads(cache_folder(kind, f"{key}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None


def store_json(kind: str, key: str, value: Any) -> None:
    """Keep a value; other processes see the old or the new file, never a part of one."""
    write_json(cache_folder(kind) / f"{key}.json", value)


def write_json(path: Path, value: Any) -> None:
    """The same, in any place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(value, file)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        logger.debug("nothing is cached in %s: %s", path.parent, error)
