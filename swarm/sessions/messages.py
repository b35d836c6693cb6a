"""Every message that two peers exchange about sessions, exactly as it is on the wire.

A message is one msgpack map, tagged by `kind`; a step or an output is followed by the raw bytes of
its tensors, in the order of `tensors`. `docs/protocol.md` explains who sends what and when.
Decoding checks types and the limits below; everything that needs a session's state is checked by
`HopSession` and `ClientSession`.
"""

from enum import StrEnum
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

MAX_HOPS = 32
MAX_ROWS = 256
MAX_STEP_TOKENS = 1024
"""Most tokens, over all rows, in one step; longer prompts travel as several steps. Also how long
anybody's step may keep others waiting: a pass has at least one step, whatever its size."""
MAX_LENGTH = 1 << 20
MAX_UNANSWERED = 64
"""Most steps of one session that may be in the chain at once."""
MAX_WAIT_S = 600.0
"""Longest time in line for room."""
MAX_LIFETIME_S = 7 * 24 * 3600.0
"""Longest time that a hop may be asked to keep a session."""

SessionBytes: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
HopIndex: TypeAlias = Annotated[int, Meta(ge=0, lt=MAX_HOPS)]
PeerText: TypeAlias = Annotated[str, Meta(min_length=10, max_length=100)]
CheckpointText: TypeAlias = Annotated[str, Meta(min_length=8, max_length=64)]
"""As long as the directory's records allow."""
Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 40)]
Slot: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_LENGTH)]
Slots: TypeAlias = Annotated[tuple[Slot, ...], Meta(max_length=MAX_ROWS)]
Text: TypeAlias = Annotated[str, Meta(max_length=500)]


class Want(StrEnum):
    """Which positions of the answer the client needs back."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


class FailKind(StrEnum):
    """Why a hop ended a session, or is about to; each has its error class in `swarm.errors`."""

    REJECTED = "rejected"
    NOT_FINITE = "not_finite"
    UNKNOWN_SESSION = "unknown_session"
    EXPIRED = "expired"
    PEER_LOST = "peer_lost"
    SHUTTING_DOWN = "shutting_down"
    DRAINING = "draining"
    INTERNAL = "internal"


class RefuseKind(StrEnum):
    """Why a hop did not hold a session."""

    CACHE_FULL = "cache_full"
    WRONG_SPAN = "wrong_span"
    WRONG_CHECKPOINT = "wrong_checkpoint"
    BAD_GRANT = "bad_grant"
    QUOTA = "quota"
    DRAINING = "draining"


class Hop(msgspec.Struct, frozen=True, array_like=True):
    """One hop of a route: blocks `start:end` on `peer`."""

    peer: PeerText
    start: Slot
    end: Slot


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The client's signed permission to run one session over one route."""

    session: SessionBytes
    route: Count
    """Number of the route; a hop takes only a higher one for a session that it knows."""
    checkpoint: CheckpointText
    hops: Annotated[tuple[Hop, ...], Meta(min_length=1, max_length=MAX_HOPS)]
    client: PeerText
    rows: Annotated[int, Meta(ge=1, le=MAX_ROWS)]
    """Most rows that the session will ever have at once."""
    length: Annotated[int, Meta(ge=1, le=MAX_LENGTH)]
    """Most slots of each row."""
    dtype: Annotated[str, Meta(max_length=16)]
    """Of the activations on the wire, as torch names it: `float32`, `bfloat16`, `float16`."""
    lifetime_s: Annotated[float, Meta(gt=0, le=MAX_LIFETIME_S)]
    """How long after its opening a hop may keep the session."""


class SignedGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A grant as it travels: its bytes, and its client's signature."""

    grant: Annotated[bytes, Meta(max_length=16384)]
    """A `Grant` in msgpack: the very bytes that were signed."""
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    """Ed25519 over `b"swarm grant v1\\0" + grant`, with the key of the grant's client."""


class _Message(msgspec.Struct, frozen=True, tag_field="kind", forbid_unknown_fields=True):
    pass


class Open(_Message, frozen=True, tag="open"):
    """Client to hop: hold room for the session; answered by `Held` or `Refused`."""

    signed: SignedGrant
    hop: HopIndex
    wait_s: Annotated[float, Meta(ge=0, le=MAX_WAIT_S)] = 0.0
    """0: answer at once. Else wait in line for room for so long.

    It stretches the lease too: the hold lasts until 8 s after `wait_s` has passed.
    """
    attempt: Count = 0
    """Comes back in `Held` and `Refused`: which of the client's tries they answer."""


class Held(_Message, frozen=True, tag="held"):
    """Hop to client: the session has its room here, until the lease or a `Commit`."""

    session: SessionBytes
    route: Count
    attempt: Count = 0


class Refused(_Message, frozen=True, tag="refused"):
    """Hop to client: it does not take the session. `free_tokens`: of its cache, now."""

    session: SessionBytes
    route: Count
    why: RefuseKind
    detail: Text
    free_tokens: Count
    attempt: Count = 0


class Commit(_Message, frozen=True, tag="commit"):
    """Client to hop: all hops hold; the session lives until closed, expired or lost."""

    session: SessionBytes
    route: Count


class Close(_Message, frozen=True, tag="close"):
    """Client to hop: free everything; also releases a hold."""

    session: SessionBytes


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of the payload: row-major, little-endian, exactly `prod(shape)` items."""

    name: Annotated[str, Meta(max_length=32)]
    dtype: Annotated[str, Meta(max_length=16)]
    shape: Annotated[tuple[Slot, ...], Meta(max_length=4)]


class RowOperation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a new epoch does to the rows before its first step.

    First `parents`: new row r is a fork of old row `parents[r]` (absent: rows stay). Then
    `truncate_to`: new row r keeps its first `truncate_to[r]` slots (absent: all).
    """

    parents: Annotated[tuple[Slot, ...], Meta(min_length=1, max_length=MAX_ROWS)] | None = None
    truncate_to: Annotated[tuple[Slot, ...], Meta(min_length=1, max_length=MAX_ROWS)] | None = None


class Step(_Message, frozen=True, tag="step"):
    """Client to first hop, and hop to next hop: activations for new slots of each row.

    Tensor `hidden` has shape `[sum(counts), hidden_size]`: row 0's tokens, then row 1's, ...
    """

    session: SessionBytes
    epoch: Count
    seq: Count
    starts: Slots
    counts: Slots
    position_ids: Annotated[tuple[Slot, ...], Meta(max_length=4 * MAX_STEP_TOKENS)]
    """The position of each token, `sum(counts)` of them. A step that is too long can still be read,
    so that its session ends with a reason and not its link."""
    emit_from: Slots
    """Outputs for slots below `emit_from[r]` fill the cache and are not forwarded.

    Empty: all are forwarded.
    """
    want: Want
    tensors: Annotated[tuple[TensorSpec, ...], Meta(max_length=4)]
    operation: RowOperation | None = None
    """On `seq` 0 of an epoch that rolls back or forks; every hop applies it once."""
    emit_hop: HopIndex = 0
    """The first hop that heeds `emit_from`; the hops before it forward everything."""
    horizon: Slot = 0
    """The last position of all tokens that the user ran at once, of which these are a piece.

    0: there are no others. Some kinds of RoPE go by it.
    """


class Output(_Message, frozen=True, tag="output"):
    """Last hop to client: what `want` asked for; without tensors it only acknowledges.

    Also from the hop where a refill ends (`emit_hop`), when nothing is left to go on.
    """

    session: SessionBytes
    epoch: Count
    seq: Count
    starts: Slots
    counts: Slots
    tensors: Annotated[tuple[TensorSpec, ...], Meta(max_length=4)]
    compute_ms: Annotated[float, Meta(ge=0)]
    queue_ms: Annotated[float, Meta(ge=0)]
    """Compute and queue time of this step at the last hop."""


class Gap(_Message, frozen=True, tag="gap"):
    """Hop to its pusher (and on to the client): the step begins beyond what is held."""

    session: SessionBytes
    epoch: Count
    """The epoch of the step that could not be taken."""
    hop: HopIndex
    held: Slots
    seq: Count = 0
    """The step of `epoch` that is missing; 0: not even the epoch's first has come."""


class Fail(_Message, frozen=True, tag="fail"):
    """Hop to client: the session is over at this hop.

    But after `peer_lost` it keeps what it holds, so that the client can route around `peer`, and
    after `draining` it serves on until it leaves, so that the client can move the session.
    """

    session: SessionBytes
    hop: HopIndex
    why: FailKind
    detail: Text
    peer: Annotated[str, Meta(max_length=100)] = ""
    """The peer that is lost, if that is another one than the sender."""


class Fence(_Message, frozen=True, tag="fence"):
    """Client to hop: from now on only `epoch` and above; optionally a new route.

    Answered by `Holds`. `operation` is applied as if it came with a step.
    """

    session: SessionBytes
    epoch: Count
    signed: SignedGrant | None = None
    hop: HopIndex = 0
    operation: RowOperation | None = None


class Holds(_Message, frozen=True, tag="holds"):
    """Hop to client: what is in its cache, and from which slot it can replay what it pushed."""

    session: SessionBytes
    epoch: Count
    hop: HopIndex
    held: Slots
    backup_from: Slots | None
    """Its backup covers `backup_from[r]` up to `held[r]`; None: no backup."""
    rows_epoch: Count = 0
    """The newest epoch whose operation these rows have seen."""


class Replay(_Message, frozen=True, tag="replay"):
    """Client to hop: push these slots of what you pushed before to the next hop, as this step."""

    session: SessionBytes
    epoch: Count
    seq: Count
    starts: Slots
    counts: Slots
    emit_from: Slots
    emit_hop: HopIndex
    horizon: Slot = 0


class StatusRequest(_Message, frozen=True, tag="status_request"):
    """Anybody to a server: how is it? `request`: comes back in the answer."""

    request: Count


class StatusReply(_Message, frozen=True, tag="status_reply"):
    """The answer to a `StatusRequest`."""

    request: Count
    status: Annotated[bytes, Meta(max_length=65536)]
    """JSON; the fields of `swarm-client status --json`'s `servers`."""


Message: TypeAlias = (
    Open
    | Held
    | Refused
    | Commit
    | Close
    | Step
    | Output
    | Gap
    | Fail
    | Fence
    | Holds
    | Replay
    | StatusRequest
    | StatusReply
)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_GRANT_DECODER = msgspec.msgpack.Decoder(Grant)


def encode(message: Message | Grant) -> bytes:
    """The msgpack bytes, as they are sent or signed."""
    return _ENCODER.encode(message)


def decode(data: bytes | memoryview) -> Message:
    """Raises `msgspec.DecodeError` for anything that is no message within the limits."""
    try:
        return _DECODER.decode(data)
    except UnicodeDecodeError as error:  # of msgspec's own errors it is none
        raise msgspec.DecodeError(str(error)) from None


def decode_grant(data: bytes) -> Grant:
    """Raises `msgspec.DecodeError` for anything that is no grant within the limits."""
    try:
        return _GRANT_DECODER.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from None
