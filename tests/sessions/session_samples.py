"""Grants and steps for tests of single machines."""

from swarm.sessions.messages import (
    Grant,
    Hop,
    RowOperation,
    SignedGrant,
    Step,
    TensorSpec,
    Want,
    encode,
)
from swarm.spans import PeerId

CLIENT = PeerId("client-0000")
HOPS = tuple(PeerId(f"server-{number:04}") for number in range(3))
SESSION = b"0123456789abcdef"


def make_grant(*, rows: int = 4, length: int = 100, route: int = 0) -> Grant:
    hops = tuple(Hop(peer, 10 * i, 10 * i + 10) for i, peer in enumerate(HOPS))
    return Grant(SESSION, route, "checkpoint", hops, CLIENT, rows, length, "float32", 100.0)


def signed(grant: Grant) -> SignedGrant:
    return SignedGrant(encode(grant), b"s" * 64)


def make_step(
    epoch: int,
    seq: int,
    starts: tuple[int, ...],
    counts: tuple[int, ...],
    *,
    want: Want = Want.ALL,
    operation: RowOperation | None = None,
    emit_from: tuple[int, ...] = (),
    emit_hop: int = 0,
) -> Step:
    tokens = sum(counts)
    tensors = (TensorSpec("hidden", "float32", (tokens, 8)),) if tokens else ()
    return Step(
        session=SESSION,
        epoch=epoch,
        seq=seq,
        starts=starts,
        counts=counts,
        position_ids=tuple(range(tokens)),
        emit_from=emit_from,
        want=want,
        tensors=tensors,
        operation=operation,
        emit_hop=emit_hop,
    )
