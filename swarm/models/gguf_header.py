"""The head of a GGUF file: its architecture, and where each tensor lies.

gguf's own reader makes an array object of every string of the vocabulary, which takes seconds, and
transformers' fast one knows fewer types of quantization than transformers itself can load. The
format: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import gguf

from swarm.errors import CheckpointError

_VERSIONS = (2, 3)
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_DEFAULT_ALIGNMENT = 32
_DAMAGE = (struct.error, ValueError, LookupError, ArithmeticError, RecursionError)
"""What reading lengths, types and nested arrays that make no sense may end in."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the file."""

    name: str
    ggml_type: int
    shape: tuple[int, ...]
    """In torch's order of dimensions, counted in values."""
    start: int
    """First byte in the file."""
    nbytes: int


def read_header(path: Path) -> tuple[str, list[StoredTensor]]:
    """The architecture, as ggml calls it, and all tensors; CheckpointError if they cannot be."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path} is not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                architecture, tensors = _Parser(data).parse()
            except _DAMAGE as error:
                raise CheckpointError(
                    f"{path} is a damaged GGUF file; fetch it again ({error})"
                ) from error
    for tensor in tensors:
        if tensor.start + tensor.nbytes > size:
            raise CheckpointError(f"{path} is cut off before {tensor.name} ends; fetch it again")
    return architecture, tensors


class _Parser:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._position = 4

    def parse(self) -> tuple[str, list[StoredTensor]]:
        (version,) = self._unpack("<I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, not 2 or 3")
        tensor_count, value_count = self._unpack("<QQ")
        architecture, alignment = "", _DEFAULT_ALIGNMENT
        for _ in range(value_count):
            key = self._string()
            (kind,) = self._unpack("<I")
            if key == "general.architecture" and kind == _STRING:
                architecture = self._string()
            elif key == "general.alignment" and kind == _UINT32:
                (alignment,) = self._unpack("<I")
            else:
                self._skip(kind)
        if not architecture:
            raise ValueError("it names no architecture")
        entries = [self._tensor() for _ in range(tensor_count)]
        data_start = -(-self._position // alignment) * alignment
        return architecture, [
            StoredTensor(name, kind, shape, data_start + offset, nbytes)
            for name, kind, shape, offset, nbytes in entries
        ]

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int, int]:
        name = self._string()
        (dimensions,) = self._unpack("<I")
        if dimensions > 8:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = tuple(reversed(self._unpack(f"<{dimensions}Q")))
        kind, offset = self._unpack("<IQ")
        values, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        if not shape or shape[-1] % values:
            raise ValueError(f"{name} has a shape that its type cannot have")
        return name, kind, shape, offset, math.prod(shape) // values * nbytes

    def _skip(self, kind: int) -> None:
        if kind == _STRING:
            (length,) = self._unpack("<Q")
            self._position += length
        elif kind == _ARRAY:
            element, count = self._unpack("<IQ")
            if element in _SCALARS:
                self._position += _SCALARS[element] * count
            else:
                for _ in range(count):
                    self._skip(element)
        elif kind in _SCALARS:
            self._position += _SCALARS[kind]
        else:
            raise ValueError(f"it holds a value of type {kind}")

    def _string(self) -> str:
        (length,) = self._unpack("<Q")
        start = self._position
        self._position += length
        if self._position > len(self._data):
            raise ValueError("a string ends behind the file")
        return self._data[start : self._position].decode("utf-8")

    def _unpack(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from(form, self._data, self._position)
        self._position += struct.calcsize(form)
        return values
