"""What servers say of themselves in the DHT, and the keys under which they say it.

A record is a msgpack map with short keys, signed as `swarm.dht.signing` says. Unknown keys are
ignored, so that minor versions can add fields. Readers check the schema strictly and the
plausibility of every value; a record that fails is a RecordError, and only that record is skipped.
Texts are made printable: they reach terminals.
"""

import hashlib
import math
from typing import Annotated, Any, ClassVar, Self

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from swarm.dht.distances import check_next_hops, pack_coordinate, unpack_coordinate
from swarm.dht.signing import body_of, check, dht_key_id, seal
from swarm.errors import BadSpanError, RecordError
from swarm.printable import printable
from swarm.routing.coordinates import Coordinate
from swarm.routing.view import Numerics, ServerState, ServerView
from swarm.spans import PeerId, Span
from swarm.wire.identity import Identity, is_peer_id

SHARDS = 16
RECORD_LIFETIME_S = 60.0
MAX_LIFETIME_S = 90.0
"""A record that would live longer (by the reader's clock) is refused."""
CLOCK_SKEW_S = 5.0
MAX_ADDRESSES = 4
MAX_MS = 600_000.0
"""Of any time that a record tells."""
MIN_MEASURED = 1e-6
"""Less was never measured; and what readers divide by a figure has to stay finite."""
MAX_BLOCKS = 4096
DIGEST_BYTES = 4


def may_live(expiration: float, now: float) -> bool:
    """Whether a record that expires then is kept and read by a clock that says `now` (Unix times):
    it is not over, and lives no longer than any may. One that does was signed or taken by a clock
    that has been set back since."""
    return now < expiration <= now + MAX_LIFETIME_S + CLOCK_SKEW_S


def shard_of(peer: str) -> int:
    """Which of the `SHARDS` keys holds the records of `peer`."""
    return hashlib.sha256(peer.encode()).digest()[0] % SHARDS


def server_key(checkpoint: str, shard: int) -> str:
    """The DHT key of one shard of the servers of a checkpoint."""
    return f"v1/{checkpoint}/{shard}"


def model_key(shard: int) -> str:
    """The DHT key of one shard of the index of models."""
    return f"v1/models/{shard}"


def _span(value: object) -> object:
    if isinstance(value, list) and len(value) == 2 and all(type(end) is int for end in value):
        try:
            return Span(*value)
        except BadSpanError as error:
            raise ValueError(str(error)) from error
    return value


def _state(value: object) -> object:
    return ServerState(value) if isinstance(value, str) else value


def _numerics(value: object) -> object:
    if isinstance(value, list) and len(value) == 3:
        if not all(isinstance(part, str) and 0 < len(part) <= 24 for part in value):
            raise ValueError("numerics are three names of at most 24 characters")
        return Numerics(*map(printable, value))
    if isinstance(value, Numerics):
        return Numerics(*map(printable, (value.dtype, value.quantization, value.kernel_class)))
    return value


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _float(value: object) -> object:
    return float(value) if type(value) is int else value


def _measurable(value: float) -> float:
    if 0 < value < MIN_MEASURED:
        raise ValueError(f"{value:g} is less than anybody can measure")
    return value


Name = Annotated[str, Field(min_length=1, max_length=80), AfterValidator(printable)]
Checkpoint = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
Blocks = Annotated[int, Field(ge=1, le=MAX_BLOCKS)]
Milliseconds = Annotated[
    float,
    BeforeValidator(_float),
    Field(ge=0, le=MAX_MS, allow_inf_nan=False),
    AfterValidator(_measurable),
]
Rate = Annotated[
    float,
    BeforeValidator(_float),
    Field(ge=0, le=1e9, allow_inf_nan=False),
    AfterValidator(_measurable),
]
Tokens = Annotated[int, Field(ge=0, le=1 << 40)]


_body = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_ODD = (TypeError, OverflowError, RecursionError)
"""What decoding and checking a hostile body may raise besides saying that it is malformed."""


class _Record(BaseModel):
    """Base of the two kinds: packing with short keys, signing, strict reading."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    wire_keys: ClassVar[dict[str, str]]
    """Field -> key on the wire. `peer` is the subkey and is not repeated in the body."""

    peer: PeerId

    @model_validator(mode="after")
    def _peer_is_an_identity(self) -> Self:
        if not is_peer_id(self.peer):
            raise ValueError("the peer id is not one of an Ed25519 identity")
        return self

    def pack(self) -> bytes:
        """The body: msgpack with the keys of `wire_keys`, fields that are not set left out."""
        body: dict[str, object] = {}
        for field, key in self.wire_keys.items():
            value = getattr(self, field)
            if value != type(self).model_fields[field].default:
                body[key] = _plain(value)
        return msgspec.msgpack.encode(body)

    def sealed(self, identity: Identity, key: str, expiration: float) -> bytes:
        """The signed value for the DHT. Raises RecordError when it is too large or not our own."""
        if identity.peer_id != self.peer:
            raise RecordError(f"{identity.peer_id} cannot sign a record of {self.peer}")
        return seal(identity, key, self.pack(), expiration)

    @classmethod
    def opened(cls, key: str, peer: str, value: bytes, expiration: float, *, now: float) -> Self:
        """The record in a value found under `(key, peer)`; `now`, `expiration`: Unix times.

        Raises RecordError when it is forged, stale, for another key or not plausible.
        """
        if not isinstance(value, bytes) or not math.isfinite(expiration):
            raise RecordError(f"a record of {peer} that is not a signed value")
        check(dht_key_id(key), peer, value, expiration)
        if expiration <= now:
            raise RecordError(f"a record of {peer} that expired {now - expiration:.1f} s ago")
        if expiration > now + MAX_LIFETIME_S + CLOCK_SKEW_S:
            raise RecordError(
                f"a record of {peer} that lives {expiration - now:.0f} s (at most "
                f"{MAX_LIFETIME_S:.0f}); its clock or ours is wrong"
            )
        try:
            fields = cls._fields_of(_body.decode(body_of(value)))
            return cls.model_validate({**fields, "peer": peer})
        except (msgspec.MsgspecError, ValidationError, ValueError, *_ODD) as error:
            raise RecordError(f"a record of {peer} is malformed: {_first_line(error)}") from error

    @classmethod
    def _fields_of(cls, body: dict[str, msgspec.Raw]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for field, key in cls.wire_keys.items():
            if key in body:
                fields[field] = msgspec.msgpack.decode(body[key])
                if not _is_flat(fields[field]):
                    raise ValueError(f"{field}: nested too deep")
        return fields


class ServerRecord(_Record):
    """One server of one model."""

    wire_keys: ClassVar[dict[str, str]] = {
        "span": "b",
        "state": "s",
        "checkpoint": "c",
        "model": "m",
        "num_blocks": "n",
        "block_digests": "h",
        "numerics": "q",
        "decode_ms_per_block": "d",
        "prefill_tokens_per_s": "p",
        "cache_tokens_free": "f",
        "cache_tokens_total": "t",
        "queue_wait_ms": "w",
        "sessions": "o",
        "public_name": "u",
        "max_upload_mbit": "l",
        "addresses": "a",
        "version": "v",
        "protocol": "x",
        "sequence": "i",
        "coordinate": "k",
        "next_hops": "j",
        "moving_to": "z",
        "may_move": "y",
    }

    span: Annotated[Span, BeforeValidator(_span)]
    state: Annotated[ServerState, BeforeValidator(_state)]
    checkpoint: Checkpoint
    model: Name
    """Its short name, for people."""
    num_blocks: Blocks
    """Of the whole model."""
    block_digests: bytes = b""
    """`DIGEST_BYTES` for each block of the span, in order; empty: not known (yet)."""
    numerics: Annotated[Numerics, BeforeValidator(_numerics)]
    decode_ms_per_block: Milliseconds = 0.0
    """Of one token in one block; 0 while it is not measured."""
    prefill_tokens_per_s: Rate = 0.0
    """Through the whole span; 0 while it is not measured."""
    cache_tokens_free: Tokens = 0
    cache_tokens_total: Tokens = 0
    queue_wait_ms: Milliseconds = 0.0
    sessions: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    public_name: Annotated[str, Field(max_length=60), AfterValidator(printable)] = ""
    max_upload_mbit: Rate = 0.0
    """What it may send to all peers together; 0: as much as its line takes."""
    addresses: Annotated[
        tuple[Annotated[str, Field(max_length=120, pattern=r"^/[\x21-\x7e]+$")], ...],
        BeforeValidator(_tuple),
        Field(max_length=MAX_ADDRESSES),
    ] = ()
    """Multiaddresses without the `/p2p/` part, best first."""
    version: Annotated[str, Field(min_length=1, max_length=24), AfterValidator(printable)]
    """Of the program."""
    protocol: Annotated[int, Field(ge=1, le=65535)]
    """Of the link; peers with another one cannot talk to it."""
    sequence: Annotated[int, Field(ge=0, le=1 << 53)] = 0
    """Grows with every record of the server; of two records the higher one is newer."""
    coordinate: Annotated[Coordinate | None, BeforeValidator(unpack_coordinate)] = None
    """Where it is in a space whose distances are round trips; None: it does not know."""
    next_hops: Annotated[bytes, AfterValidator(check_next_hops)] = b""
    """Round trips that it measured to servers that may follow it (`swarm.dht.distances`)."""
    moving_to: Annotated[Span | None, BeforeValidator(_span)] = None
    """The blocks for which it is about to leave `span`."""
    may_move: bool = False
    """Whether it may move to other blocks now, when they are needed."""

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if self.span.end > self.num_blocks:
            raise ValueError(f"blocks {self.span} of a model with {self.num_blocks}")
        if self.moving_to is not None and self.moving_to.end > self.num_blocks:
            raise ValueError(f"a move to {self.moving_to} of a model with {self.num_blocks}")
        if len(self.block_digests) not in (0, DIGEST_BYTES * len(self.span)):
            raise ValueError(f"{len(self.block_digests)} bytes of digests for blocks {self.span}")
        if self.cache_tokens_free > self.cache_tokens_total:
            raise ValueError("more free cache than cache")
        return self

    def view(self) -> ServerView:
        """What routing and placement look at."""
        return ServerView(
            peer=self.peer,
            span=self.span,
            state=self.state,
            checkpoint=self.checkpoint,
            numerics=self.numerics,
            decode_ms_per_block=self.decode_ms_per_block,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            cache_tokens_free=self.cache_tokens_free,
            cache_tokens_total=self.cache_tokens_total,
            queue_wait_ms=self.queue_wait_ms,
            sessions=self.sessions,
            moving_to=self.moving_to,
            may_move=self.may_move,
        )

    def digest_of(self, block: int) -> bytes | None:
        """The digest of one of its blocks; None when the record carries none."""
        if not self.block_digests or block not in self.span:
            return None
        start = DIGEST_BYTES * (block - self.span.start)
        return self.block_digests[start : start + DIGEST_BYTES]


class ModelRecord(_Record):
    """One entry of the index of models: `peer` serves this checkpoint in this swarm."""

    wire_keys: ClassVar[dict[str, str]] = {
        "checkpoint": "c",
        "model": "m",
        "num_blocks": "n",
        "withdrawn": "g",
    }

    checkpoint: Checkpoint
    model: Name
    num_blocks: Blocks
    withdrawn: bool = False
    """`peer` serves it no more; replaces the entry that would live on until it expires."""


def _is_flat(value: object) -> bool:
    """Whether it is a plain value or a list of plain values; nothing that we read is deeper."""
    parts = value if isinstance(value, list) else [value]
    return not any(isinstance(part, list | dict | tuple) for part in parts)


def _plain(value: object) -> object:
    if isinstance(value, Span):
        return [value.start, value.end]
    if isinstance(value, Numerics):
        return [value.dtype, value.quantization, value.kernel_class]
    if isinstance(value, Coordinate):
        return pack_coordinate(value)
    return value


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        return f"{where}: {what}" if where else what
    return str(error).splitlines()[0] if str(error) else type(error).__name__
