"""Steps of a session as bytes, and the bytes of its answers as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from swarm.client.chain import ChainStep
from swarm.client.pieces import Piece
from swarm.sessions.events import Part
from swarm.sessions.messages import Output, TensorSpec
from swarm.wire.codecs import pack_tensors, unpack_tensors

Answer = tuple[Output, memoryview]


@dataclass(frozen=True)
class Encoded:
    """One piece of a step with its bytes, ready to be sent, now or again."""

    piece: Piece
    position_ids: tuple[int, ...]
    horizon: int
    """The last position of the whole step, if it has several rows or pieces; else 0."""
    specs: tuple[TensorSpec, ...]
    buffers: list[memoryview]
    """One: `hidden`, `[tokens, hidden_size]`, row-major."""

    @property
    def size_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)


def encode_piece(piece: Piece, step: ChainStep, dtype: torch.dtype) -> Encoded:
    """`piece` of `step` in `dtype`. Raises StepRejectedError for a type that does not travel."""
    hidden = step.hidden[piece.start : piece.end].to(dtype)
    specs, buffers = pack_tensors({"hidden": hidden})
    positions = tuple(step.position_ids[piece.start : piece.end])
    alone = len(step.counts) == 1 and len(positions) == len(step.position_ids)
    horizon = 0 if alone else max(step.position_ids)
    return Encoded(piece, positions, horizon, specs, buffers)


def joined(parts: Sequence[Part]) -> tuple[tuple[TensorSpec, ...], list[memoryview]]:
    """The tokens of `parts`, whose payloads are `Encoded`, as one tensor; nothing is copied."""
    if not parts:
        return (), []
    buffers, tokens = [], 0
    for part in parts:
        (spec,) = part.payload.specs
        (whole,) = part.payload.buffers
        token_bytes = whole.nbytes // spec.shape[0]
        flat = whole.cast("B")
        buffers.append(flat[part.first * token_bytes : (part.first + part.tokens) * token_bytes])
        tokens += part.tokens
    return (TensorSpec(spec.name, spec.dtype, (tokens, *spec.shape[1:])),), buffers


def decode_answer(answer: Answer, hidden_size: int, dtype: torch.dtype) -> torch.Tensor | None:
    """`[tokens, hidden_size]`; None: something else was answered."""
    output, payload = answer
    hidden = unpack_tensors(output.tensors, payload).get("hidden")
    expected = [sum(output.counts), hidden_size]
    if hidden is None or list(hidden.shape) != expected or hidden.dtype is not dtype:
        return None
    return hidden
