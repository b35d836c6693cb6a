"""What the peers of the model check send each other, and about how many blocks."""

import msgspec

from swarm.sessions.events import Forward
from swarm.sessions.messages import Message, TensorSpec, decode, encode
from swarm.spans import PeerId

BLOCKS = 6
CHECKPOINT = "hash-chain"
Sent = tuple[PeerId, Message, list[int]]
"""Receiver, message, payload."""


def materialize(forward: Forward, counts: tuple[int, ...]) -> Sent:
    """What a sender puts on the wire for `forward`; `counts`: of the pass it comes from."""
    if forward.parts is not None:
        payload = [
            token
            for part in forward.parts
            for token in part.payload[part.first : part.first + part.tokens]
        ]
    elif forward.rows is not None and forward.payload is not None:
        payload, first = [], 0
        for count, (skip, take) in zip(counts, forward.rows, strict=True):
            payload += forward.payload[first + skip : first + skip + take]
            first += count
    else:
        payload = list(forward.payload or ())
    message = forward.message
    if payload:
        spec = TensorSpec("hidden", "float32", (len(payload), 1))
        message = msgspec.structs.replace(message, tensors=(spec,))
    return forward.to, decode(encode(message)), payload
