"""Who a peer is: an Ed25519 key, whose public half is the libp2p peer id itself.

The key file is libp2p's own (a protobuf `PrivateKey {key_type = Ed25519, data = secret + public}`),
so that our daemon takes it as it is. A peer id is the "identity" multihash of the protobuf
`PublicKey` in base58; a signature is therefore checked with nothing but the id.
"""

import os
import secrets
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from swarm.errors import UsageError
from swarm.spans import PeerId

_KEY_FILE_PREFIX = bytes([0x08, 1, 0x12, 64])
"""Protobuf: field 1 = 1 (Ed25519), field 2 = 64 bytes."""
_PEER_ID_PREFIX = bytes([0, 36, 0x08, 1, 0x12, 32])
"""Multihash `identity`, 36 bytes; then the protobuf `PublicKey`: Ed25519, 32 bytes."""
_MAX_PEER_ID_LENGTH = 64
SIGNATURE_BYTES = 64


class Identity:
    """An Ed25519 key pair with its peer id."""

    def __init__(self, secret: bytes) -> None:
        """`secret`: the 32 bytes of the private key."""
        self._secret = secret
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self._public = self._key.public_key().public_bytes_raw()
        self.peer_id = PeerId(base58.b58encode(_PEER_ID_PREFIX + self._public).decode())

    @classmethod
    def create(cls) -> "Identity":
        """A new identity from the system's random source, kept nowhere."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """The identity in a key file. UsageError when it is unreadable or of another kind."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(
                f"cannot read the identity file {path}: {error.strerror}; "
                "make it readable, or choose another one"
            ) from error
        secret = data[len(_KEY_FILE_PREFIX) :][:32]
        if len(data) == len(_KEY_FILE_PREFIX) + 64 and data.startswith(_KEY_FILE_PREFIX):
            identity = cls(secret)
            if identity._file_bytes() == data:
                return identity
        raise UsageError(
            f"{path} is not an Ed25519 identity in libp2p's format; "
            "move it away to get a new identity, or choose another file"
        )

    @classmethod
    def load_or_create(cls, path: Path) -> "Identity":
        """The identity in `path`; a new one is written there (mode 0600) when there is none.

        Two programs that start at once end up with the same identity. Raises UsageError when the
        file cannot be read or written, or is no identity.
        """
        if not path.exists():
            cls.create().save(path, replace=False, durable=True)
        return cls.load(path)

    def save(self, path: Path, *, replace: bool = True, durable: bool = False) -> None:
        """Writes the key file with mode 0600; never leaves a partly written one.

        Without `replace` a file that exists is left as it is. With `durable` the file is on the
        disk before it has its name, and the name before this returns: a peer that others know would
        otherwise be another one, or none, after a power failure. Raises UsageError.
        """
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(self._file_bytes())
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                if replace:
                    temporary.replace(path)
                elif not path.exists():
                    _link_unless_there(temporary, path)
                if durable:
                    _sync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot write the identity file {path}: {error.strerror}; choose another place"
            ) from error

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature of `data`, 64 bytes."""
        return self._key.sign(data)

    def _file_bytes(self) -> bytes:
        return _KEY_FILE_PREFIX + self._secret + self._public

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"


def verify(peer_id: str, data: bytes, signature: bytes) -> bool:
    """Whether the holder of `peer_id`'s key signed `data`. False for anything malformed."""
    public = public_key(peer_id)
    if public is None or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_key(peer_id: str) -> bytes | None:
    """The 32 bytes of the Ed25519 public key inside a peer id; None for any other text.

    Only the one canonical spelling of an id is taken, so that a key has a single name.
    """
    if not 0 < len(peer_id) <= _MAX_PEER_ID_LENGTH or not peer_id.isascii():
        return None
    try:
        data = base58.b58decode(peer_id)
    except ValueError:
        return None
    if len(data) != len(_PEER_ID_PREFIX) + 32 or not data.startswith(_PEER_ID_PREFIX):
        return None
    if base58.b58encode(data).decode() != peer_id:
        return None
    return data[len(_PEER_ID_PREFIX) :]


def is_peer_id(text: str) -> bool:
    """Whether `text` is the peer id of an Ed25519 identity."""
    return public_key(text) is not None


def _sync_folder(folder: Path) -> None:
    """The names in it are on the disk afterwards."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link_unless_there(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        return  # another program was first; its identity is the one to use
