"""Tensors in safetensors files, read by byte range into their own memory."""

import json
import math
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from swarm.errors import CheckpointError
from swarm.models.disk_cache import cache_key, file_key
from swarm.models.hub_ranges import Range, fill
from swarm.models.tensor_source import FetchProgress, TensorInfo

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
HEADER_THREADS = 8
"""Headers of files that are elsewhere cost a round trip or two each."""

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
        """Bytes `start:end`, fewer at the end of the file; keeps nothing of a remote file."""

    def read_into(self, start: int, buffer: memoryview) -> bool:
        """Fills `buffer` from `start` on; False if the file ends before."""

    def missing(self, ranges: Sequence[Range]) -> int:
        """How many bytes of these ranges are not on this machine."""

    def fetch(self, ranges: Sequence[Range], arrived: Callable[[int], None]) -> None:
        """Brings `ranges` to this machine; `arrived(bytes)` may raise to end it."""


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

    def read_into(self, start: int, buffer: memoryview) -> bool:
        with self._path.open("rb", buffering=0) as file:
            file.seek(start)
            return fill(file, buffer)

    def missing(self, ranges: Sequence[Range]) -> int:
        return 0

    def fetch(self, ranges: Sequence[Range], arrived: Callable[[int], None]) -> None:
        """It is here."""


class _Count:
    """Adds up what arrives in several threads."""

    def __init__(self, total: int, progress: FetchProgress) -> None:
        self._total, self._progress = total, progress
        self._lock = threading.Lock()
        self._done = 0

    def arrived(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            self._progress(self._done, self._total)


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
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{index} is not an index of safetensors files; fetch it again"
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
        with ThreadPoolExecutor(HEADER_THREADS) as threads:
            headers = list(threads.map(_read_header, shards))
        for shard, header in zip(shards, headers, strict=True):
            for name, placed in header.items():
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
        if not placed.shard.read_into(
            placed.start, tensor.reshape(-1).view(torch.uint8).numpy().data
        ):
            raise CheckpointError(f"{placed.shard.label} ends inside {name}; fetch the file again")
        return tensor

    def fetch(self, names: Iterable[str], progress: FetchProgress) -> None:
        ranges: defaultdict[ShardFile, list[Range]] = defaultdict(list)
        for placed in (self._placed[name] for name in names):
            ranges[placed.shard].append((placed.start, placed.start + placed.info.nbytes))
        missing = sum(shard.missing(wanted) for shard, wanted in ranges.items())
        if not missing:
            return
        count = _Count(missing, progress)
        for shard, wanted in ranges.items():
            shard.fetch(wanted, count.arrived)

    def stored_bytes(self, name: str, start: int, end: int) -> bytes:
        placed = self._placed[name]
        data = placed.shard.read(placed.start + start, placed.start + end)
        if len(data) != end - start:
            raise CheckpointError(f"{placed.shard.label} ends inside {name}; fetch the file again")
        return data


def _read_header(shard: ShardFile) -> dict[str, _Placed]:
    """Parse and check a file's header; nothing in it is believed before it is checked."""
    size = shard.size()
    shard.fetch([(0, min(8, size))], lambda _: None)
    prefix = shard.read(0, 8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER_BYTES + 1
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{shard.label} is not a safetensors file, or is cut off; fetch it again"
        )
    data_start = 8 + length
    shard.fetch([(8, data_start)], lambda _: None)
    try:
        header = json.loads(shard.read(8, data_start))
        placed = {
            name: _placed(shard, data_start, entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
