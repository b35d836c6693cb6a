"""Where a checkpoint's tensors lie: the interface of every file format."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor, as the file's header describes it."""

    shape: tuple[int, ...]
    """Shape of the tensor that `read` returns."""
    dtype: str
    """How it is stored: safetensors' or ggml's name, such as `BF16` or `Q4_1`, or the code."""
    nbytes: int
    """Bytes that it takes in the file."""


FetchProgress = Callable[[int, int], None]
"""`progress(bytes fetched, bytes to fetch)`; called in any thread, one at a time. May raise."""


class ReadCounter:
    """Bytes of tensor data taken from files; threads may add at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._total += nbytes

    @property
    def total(self) -> int:
        return self._total


class TensorSource(Protocol):
    """Tensors by name; nothing is read before it is asked for. All methods are thread-safe."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def file_key(self) -> str:
        """Changes when a file is replaced or rewritten; names cached facts about the content."""

    def fetch(self, names: Iterable[str], progress: FetchProgress) -> None:
        """Bring these tensors to this machine, if they are elsewhere; else nothing happens."""

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its own memory, a floating point one if it is stored quantized;
        CheckpointError."""

    def stored_bytes(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start:end` of the tensor as stored, `0 <= start <= end <= nbytes`."""


class LazyTensor:
    """Stands for one tensor and is read by `lazy[...]`, which is what transformers' loader does.

    A state dict of these never holds the stored and the loaded weights at the same time.
    """

    def __init__(self, source: TensorSource, name: str, read_counter: ReadCounter) -> None:
        self._source = source
        self._name = name
        self._counter = read_counter
        self.shape = torch.Size(source.tensors[name].shape)

    def __getitem__(self, everything: object) -> torch.Tensor:
        if everything is not Ellipsis:
            raise IndexError(f"{self._name} is read whole, as lazy[...]")
        tensor = self._source.read(self._name)
        self._counter.add(self._source.tensors[self._name].nbytes)
        return tensor


def chunks(nbytes: int, size: int = 1 << 22) -> Iterator[tuple[int, int]]:
    """`0:nbytes` in runs of at most `size` bytes."""
    for start in range(0, nbytes, size):
        yield start, min(start + size, nbytes)
