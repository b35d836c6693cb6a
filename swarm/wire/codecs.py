"""Tensors as the payload of a message: raw little-endian rows, described by `TensorSpec`.

Contiguous CPU tensors are neither copied when they are packed nor when they are unpacked.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch

from swarm.errors import StepRejectedError
from swarm.sessions.grants import ACTIVATION_DTYPES
from swarm.sessions.messages import TensorSpec

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ACTIVATION_DTYPES}
"""The activations' types, by their names on the wire."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The name on the wire. Raises StepRejectedError for a type that does not travel."""
    try:
        return _NAMES[dtype]
    except KeyError:
        raise StepRejectedError(
            f"{dtype} does not travel; use one of {', '.join(DTYPES)}"
        ) from None


def pack_tensors(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[tuple[TensorSpec, ...], list[memoryview]]:
    """The specs and, in the same order, the bytes of each tensor.

    The bytes are views of the tensors where these are contiguous and on the CPU: whoever sends
    them must not write to the tensors afterwards. Raises StepRejectedError for other types than
    `DTYPES`.
    """
    specs = []
    payload = []
    for name, tensor in tensors.items():
        specs.append(TensorSpec(name, dtype_name(tensor.dtype), tuple(tensor.shape)))
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        payload.append(flat.view(torch.uint8).numpy().data)
    return tuple(specs), payload


def unpack_tensors(
    specs: Sequence[TensorSpec], payload: memoryview | bytes | bytearray
) -> dict[str, torch.Tensor]:
    """The tensors by name. They share `payload`'s memory if it is writable, else they are copies.

    Raises StepRejectedError, before anything is allocated, if a name is repeated, a dtype is not
    one of `DTYPES`, or the sizes do not add up to exactly `len(payload)`.
    """
    view = memoryview(payload)
    expected = _checked_size(specs)
    if expected != view.nbytes:
        raise StepRejectedError(
            f"the tensors {_describe(specs)} take {expected} bytes, but {view.nbytes} came"
        )
    if view.readonly:
        view = memoryview(bytearray(view))
    tensors: dict[str, torch.Tensor] = {}
    offset = 0
    for spec in specs:
        dtype = DTYPES[spec.dtype]
        count = prod(spec.shape)
        end = offset + count * dtype.itemsize
        if count == 0:
            flat = torch.empty(0, dtype=dtype)
        elif offset % dtype.itemsize:
            flat = torch.frombuffer(bytearray(view[offset:end]), dtype=dtype)
        else:
            flat = torch.frombuffer(view, dtype=dtype, count=count, offset=offset)
        tensors[spec.name] = flat.reshape(spec.shape)
        offset = end
    return tensors


def _checked_size(specs: Sequence[TensorSpec]) -> int:
    size = 0
    names = set()
    for spec in specs:
        dtype = DTYPES.get(spec.dtype)
        if dtype is None:
            raise StepRejectedError(
                f"tensor {spec.name!r} has dtype {spec.dtype!r}; known are {', '.join(DTYPES)}"
            )
        if spec.name in names:
            raise StepRejectedError(f"two tensors are named {spec.name!r}")
        if any(length < 0 for length in spec.shape):
            raise StepRejectedError(f"tensor {spec.name!r} has a negative length: {spec.shape}")
        names.add(spec.name)
        size += prod(spec.shape) * dtype.itemsize
    return size


def _describe(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs) or "(none)"
