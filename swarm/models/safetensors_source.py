"""Tensors in safetensors files, read by byte range into their own memory."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from swarm.errors import CheckpointError
from swarm.models.disk_cache import cache_key, file_key
from swarm.models.tensor_source import TensorInfo

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class ShardFile(Protocol):
    """One safetensors file, here or elsewhere."""

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def key(self) -> str:
        """Names its content, see `disk_cache`."""

    def size(self) -> int: ...

    def read(self, start: int, end: int) -> bytes:
        """Bytes `start:end`, without fetching the rest of a file that is elsewhere."""

    def local_path(self) -> Path:
        """The file on this machine; fetches it whole if it is elsewhere."""


class LocalShard:
    """A file on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.label = str(path)
        self.key = file_key(path)

    def size(self) -> int:
        return self._path.stat().st_size

    def read(self, start: int, end: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def local_path(self) -> Path:
        return self._path


class _Placed:
    """A tensor's place in its shard."""

    def __init__(self, shard: ShardFile, start: int, info: TensorInfo) -> None:
        self.shard = shard
        self.start = start
        self.info = info


def shard_names(folder: Path) -> list[str] | None:
    """The files that hold the weights, from the index if there is one; None without weights."""
    index = folder / INDEX_NAME
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{index} is no index of safetensors files; fetch it again"
            ) from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise CheckpointError(f"{index} names a file outside its folder: {name!r}")
        return names
    return [SINGLE_NAME] if (folder / SINGLE_NAME).is_file() else None


class SafetensorsSource:
    """The tensors of one or more safetensors files; each file's header is read at once."""

    def __init__(self, shards: Sequence[ShardFile]) -> None:
        self._placed: dict[str, _Placed] = {}
        for shard in shards:
            for name, placed in _read_header(shard).items():
                if name in self._placed:
                    raise CheckpointError(f"{shard.label} repeats the tensor {name}")
                self._placed[name] = placed
        self.file_key = cache_key(*(shard.key for shard in shards))

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: placed.info for name, placed in self._placed.items()}

    def read(self, name: str) -> torch.Tensor:
        placed = self._placed[name]
        dtype = DTYPES.get(placed.info.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{placed.shard.label} stores {name} as {placed.info.dtype}, which is not supported"
            )
        tensor = torch.empty(placed.info.shape, dtype=dtype)
        path = placed.shard.local_path()
        with path.open("rb", buffering=0) as file:
            file.seek(placed.start)
            view, filled = tensor.reshape(-1).view(torch.uint8).numpy().data, 0
            while filled < len(view):
                count = file.readinto(view[filled:])
                if not count:
                    raise CheckpointError(f"{path} ends inside {name}; fetch the file again")
                filled += count
        return tensor

    def stored_bytes(self, name: str, start: int, end: int) -> bytes:
        placed = self._placed[name]
        data = placed.shard.read(placed.start + start, placed.start + end)
        if len(data) != end - start:
            raise CheckpointError(f"{placed.shard.label} ends inside {name}; fetch the file again")
        return data


def _read_header(shard: ShardFile) -> dict[str, _Placed]:
    """Parse and check a file's header; nothing in it is believed before it is checked."""
    size = shard.size()
    prefix = shard.read(0, 8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER_BYTES + 1
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{shard.label} is no safetensors file, or is cut off; fetch it again"
        )
    data_start = 8 + length
    try:
        header = json.loads(shard.read(8, data_start))
        placed = {
            name: _placed(shard, data_start, entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{shard.label} has a damaged header; fetch it again") from error
    for name, entry in placed.items():
        if entry.start + entry.info.nbytes > size:
            raise CheckpointError(f"{shard.label} is cut off before {name} ends; fetch it again")
    return placed


def _placed(shard: ShardFile, data_start: int, entry: dict[str, object]) -> _Placed:
    shape, dtype, offsets = entry["shape"], entry["dtype"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or not isinstance(dtype, str):
        raise TypeError("a tensor's entry has the wrong types")
    if not all(isinstance(number, int) and number >= 0 for number in [*shape, *offsets]):
        raise ValueError("a tensor's shape or place is not a number")
    start, end = offsets
    known = DTYPES.get(dtype)
    if end < start or (known is not None and end - start != math.prod(shape) * known.itemsize):
        raise ValueError("a tensor's bytes do not fit its shape")
    return _Placed(shard, data_start + start, TensorInfo(tuple(shape), dtype, end - start))
