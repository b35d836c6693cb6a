"""Tensors survive the wire bit for bit, without copies where that is possible."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import StepRejectedError
from swarm.sessions.messages import TensorSpec
from swarm.wire.codecs import DTYPES, pack_tensors, unpack_tensors

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
tensors = st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), shapes), max_size=4)


def made(dtype: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DTYPES[dtype])


@given(tensors, st.sampled_from([bytes, bytearray]))
def test_round_trip(kinds: list[tuple[str, tuple[int, ...]]], buffer: type) -> None:
    sent = {f"t{i}": made(dtype, shape, i) for i, (dtype, shape) in enumerate(kinds)}
    specs, payload = pack_tensors(sent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        received = unpack_tensors(specs, memoryview(buffer(b"".join(payload))))
    assert list(received) == list(sent)
    for name, tensor in sent.items():
        assert received[name].dtype == tensor.dtype
        assert received[name].shape == tensor.shape
        assert torch.equal(received[name], tensor)


def test_contiguous_tensors_are_not_copied() -> None:
    tensor = torch.arange(6.0)
    _, payload = pack_tensors({"hidden": tensor})
    tensor[0] = 7.0
    assert bytes(payload[0][:4]) == b"\x00\x00\xe0\x40"
    memory = bytearray(24)
    specs = (TensorSpec("hidden", "float32", (2, 3)),)
    received = unpack_tensors(specs, memory)["hidden"]
    memory[:4] = b"\x00\x00\xe0\x40"
    assert received[0, 0] == 7.0


def test_read_only_bytes_are_copied() -> None:
    received = unpack_tensors((TensorSpec("hidden", "float32", (2,)),), bytes(8))["hidden"]
    received += 1
    assert received.tolist() == [1.0, 1.0]


def test_a_transposed_tensor_arrives_in_its_own_order() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    specs, payload = pack_tensors({"hidden": tensor})
    assert torch.equal(unpack_tensors(specs, b"".join(payload))["hidden"], tensor)


@pytest.mark.parametrize(
    ("specs", "length", "says"),
    [
        ([("hidden", "float32", (3,))], 8, "take 12 bytes, but 8 came"),
        ([("hidden", "float32", (3,))], 16, "take 12 bytes, but 16 came"),
        ([("hidden", "float32", (1 << 20,) * 4)], 16, "take"),
        ([("hidden", "float64", (1,))], 8, "float64"),
        ([("hidden", "object", (1,))], 8, "object"),
        ([("a", "float32", (1,)), ("a", "float32", (1,))], 8, "two tensors"),
        ([("a", "float32", (-1,)), ("b", "float32", (3,))], 8, "negative"),
    ],
)
def test_lies_are_refused(
    specs: list[tuple[str, str, tuple[int, ...]]], length: int, says: str
) -> None:
    with pytest.raises(StepRejectedError, match=says):
        unpack_tensors([TensorSpec(*spec) for spec in specs], bytes(length))


def test_other_types_do_not_travel() -> None:
    with pytest.raises(StepRejectedError, match="int64"):
        pack_tensors({"ids": torch.zeros(2, dtype=torch.int64)})
