"""What peers are told with whom there is to be no link, and what we make of being told so."""

import logging
from typing import Protocol

from swarm.errors import ProtocolVersionError, UnreachablePeerError
from swarm.spans import PeerId
from swarm.wire.frames import PROTOCOL_VERSION, FrameType, Hello, pack_hello, pack_plain

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """A stream, or the connection on it."""

    def write(self, data: bytes) -> object: ...

    def close(self) -> None: ...


def turn_away(stream: Sink) -> None:
    """There is no place for this peer: says BYE instead of HELLO, and closes."""
    stream.write(pack_plain(FrameType.BYE))
    stream.close()


def turned_away_by(peer: PeerId) -> UnreachablePeerError:
    """The peer has done that to us."""
    return UnreachablePeerError(
        f"{peer} takes no further link: as many peers have one as it serves, or as many of your "
        "network; use another server, or try again later",
        peer=peer,
    )


def other_version(peer: PeerId, version: int) -> ProtocolVersionError:
    """The peer's hello is of another version of the protocol than ours."""
    return ProtocolVersionError(
        f"{peer} speaks version {version} of the protocol, and we speak {PROTOCOL_VERSION}; "
        "the older one must be updated",
        peer=peer,
    )


def refuse_version(stream: Sink, error: ProtocolVersionError) -> None:
    """Tells a peer that has dialled us which version we speak, and closes."""
    logger.warning("%s", error)
    # Only the version in it will be read.
    stream.write(pack_hello(Hello(1, 0, 1, False, 0, (), 0)))
    stream.close()
