"""Whether peers that announce their versions of the protocol can be talked to."""

from collections.abc import Iterable

from swarm.errors import ProtocolVersionError
from swarm.wire.frames import PROTOCOL_VERSION


def check_versions(announced: Iterable[int]) -> None:
    """Raises `ProtocolVersionError` if there are servers, and all announce other versions."""
    versions = sorted(set(announced))
    if not versions or PROTOCOL_VERSION in versions:
        return
    theirs = ", ".join(map(str, versions))
    old = "this program" if versions[-1] > PROTOCOL_VERSION else "the servers"
    raise ProtocolVersionError(
        f"the servers of this swarm speak version {theirs} of the protocol, and we speak "
        f"{PROTOCOL_VERSION}; update {old}, or use a swarm whose servers speak it"
    )
