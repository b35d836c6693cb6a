"""Signed values of the DHT: what is signed, how it is packed, and what a holder checks.

A value is `signature (64) | protocol major (1) | body`, at most `MAX_VALUE_BYTES`. The signature is
over the DHT key, the subkey (the signer's peer id), the expiration and the rest of the value, so a
value can neither be moved to another key, nor be claimed by another peer, nor be made to live
longer.
"""

import hashlib
import struct

import msgspec

from swarm.errors import RecordError
from swarm.spans import PeerId
from swarm.wire.identity import SIGNATURE_BYTES, Identity, verify

PROTOCOL_MAJOR = 1
"""Values of another major version are refused; minor changes only add fields."""
MAX_VALUE_BYTES = 1024
_DOMAIN = b"swarm record v1\0"


def dht_key_id(key: str) -> bytes:
    """The 20 bytes under which the DHT stores `key` (hivemind's `DHTID.generate`)."""
    return hashlib.sha1(msgspec.msgpack.encode(key), usedforsecurity=False).digest()


def seal(identity: Identity, key: str, body: bytes, expiration: float) -> bytes:
    """What `identity` stores under `(key, its own peer id)` until `expiration` (Unix time).

    Raises RecordError when it would be larger than `MAX_VALUE_BYTES`.
    """
    rest = bytes([PROTOCOL_MAJOR]) + body
    if SIGNATURE_BYTES + len(rest) > MAX_VALUE_BYTES:
        raise RecordError(
            f"a record of {SIGNATURE_BYTES + len(rest)} bytes is over the limit of "
            f"{MAX_VALUE_BYTES}; announce fewer addresses, a shorter name or no block digests"
        )
    signed = _signed_bytes(dht_key_id(key), identity.peer_id, rest, expiration)
    return identity.sign(signed) + rest


def check(key_id: bytes, peer: str, value: bytes, expiration: float) -> None:
    """Raises RecordError unless `peer` signed `value` for this key and expiration."""
    if not SIGNATURE_BYTES < len(value) <= MAX_VALUE_BYTES:
        raise RecordError(f"a record of {len(value)} bytes (at most {MAX_VALUE_BYTES}) from {peer}")
    signature, rest = value[:SIGNATURE_BYTES], value[SIGNATURE_BYTES:]
    if rest[0] != PROTOCOL_MAJOR:
        raise RecordError(f"{peer} announces in protocol {rest[0]}; this is {PROTOCOL_MAJOR}")
    if not verify(peer, _signed_bytes(key_id, PeerId(peer), rest, expiration), signature):
        raise RecordError(f"a record under the name of {peer} is not signed by it")


def body_of(value: bytes) -> bytes:
    """The body of a value that `check` has passed."""
    return value[SIGNATURE_BYTES + 1 :]


def _signed_bytes(key_id: bytes, peer: PeerId, rest: bytes, expiration: float) -> bytes:
    name = peer.encode()
    lengths = struct.pack(">HHd", len(key_id), len(name), expiration)
    return _DOMAIN + lengths + key_id + name + rest
