"""Headers that make no sense end in one line, and a full disk in no litter."""

import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import pytest

from swarm.errors import CheckpointError
from swarm.models.disk_cache import load_json, store_json
from swarm.models.gguf_header import read_header
from swarm.models.safetensors_source import INDEX_NAME, LocalShard, SafetensorsSource, shard_names


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(*values: bytes, tensors: int = 0, rest: bytes = b"") -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, 1 + len(values))
    architecture = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    return head + architecture + b"".join(values) + rest


ARRAY_OF_ARRAYS = struct.pack("<IQ", 9, 1)


@pytest.mark.parametrize(
    "damaged",
    [
        gguf(text("general.alignment") + struct.pack("<II", 4, 0)),
        gguf(text("a") + struct.pack("<IQ", 8, 1 << 63), text("b") + struct.pack("<I", 4)),
        gguf(text("a") + struct.pack("<IIQ", 9, 12, (1 << 64) - 1), text("b")),
        gguf(text("a") + struct.pack("<I", 9) + 5000 * ARRAY_OF_ARRAYS),
        gguf(tensors=1, rest=text("t") + struct.pack("<IQIQ", 1, 32, 999, 0)),
        gguf(tensors=1 << 60),
    ],
    ids=["alignment 0", "long text", "long array", "deep array", "type", "tensors"],
)
def test_a_gguf_header_that_makes_no_sense(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged + bytes(64))
    with pytest.raises(CheckpointError, match="damaged GGUF file"):
        read_header(path)


def test_a_safetensors_header_that_is_nested_too_deep(tmp_path: Path) -> None:
    header = b"[" * 100_000
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="damaged header"):
        SafetensorsSource([LocalShard(path)])
    (tmp_path / INDEX_NAME).write_bytes(header)
    with pytest.raises(CheckpointError, match="not an index of safetensors files"):
        shard_names(tmp_path)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow; the system says so as it says that a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_cannot_be_kept_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path))
    with full_disk():
        store_json("kind", "key", [1, 2, 3])
    assert load_json("kind", "key") is None
    assert list((tmp_path / "kind").iterdir()) == []
    store_json("kind", "key", [1, 2, 3])
    assert load_json("kind", "key") == [1, 2, 3]
    assert [path.name for path in (tmp_path / "kind").iterdir()] == ["key.json"]
