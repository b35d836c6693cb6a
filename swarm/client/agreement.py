"""Servers whose blocks are not what the others serve under the same checkpoint.

A checkpoint's identity covers samples of its tensors only, but every server announces a digest over
all stored bytes of each of its blocks. A client has no blocks of its own to compare them with, so
the servers are compared with each other. That finds damaged files; it finds no lies.

Identities are free, and a record may name a server that is not there. So first those count that
this client has had a link with, once for each group of addresses; records count only where these
are as many. And nobody is left out for good: who is outvoted serves where nobody else does.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from swarm.printable import listed
from swarm.scheduling.client_groups import group_of_address
from swarm.sessions.messages import Hop
from swarm.spans import PeerId

if TYPE_CHECKING:
    from swarm.dht.records import ServerRecord

logger = logging.getLogger(__name__)


def contested(records: "Sequence[ServerRecord]") -> set[PeerId]:
    """The servers of blocks of which not all announce the same digest."""
    return {
        peer
        for sides in _disputes(records).values()
        for holders in sides.values()
        for peer in holders
    }


def outvoted(records: "Sequence[ServerRecord]", places: Mapping[PeerId, str]) -> dict[PeerId, int]:
    """Servers that announce a digest of some block of which another one has more behind it, each
    with its first such block. Where as much stands behind both, nobody is outvoted.

    `places`: the group of addresses where this client has reached a server; without those that it
    has not. What stands behind a digest is the number of these groups, and, between two that have
    as many, the number of records.
    """
    found: dict[PeerId, int] = {}
    for block, sides in sorted(_disputes(records).items()):
        behind = {
            digest: (len({places[peer] for peer in holders if peer in places}), len(holders))
            for digest, holders in sides.items()
        }
        most = max(behind.values())
        for digest, holders in sides.items():
            if behind[digest] < most:
                for peer in holders:
                    found.setdefault(peer, block)
    return found


def warn_of_doubted(hops: Sequence[Hop], doubted: Collection[PeerId]) -> None:
    """For a route for which nobody else was left."""
    used = [f"{hop.peer} (blocks {hop.start}:{hop.end})" for hop in hops if hop.peer in doubted]
    if used:
        logger.warning(
            "the session runs over %s although other servers announce other contents of these "
            "blocks: nobody else serves them now, and its answers may be wrong; start another "
            "server for them, or wait for one",
            ", ".join(used),
        )


def _disputes(records: "Sequence[ServerRecord]") -> dict[int, dict[bytes, list[PeerId]]]:
    """The blocks of which several digests are announced: who announces which."""
    found: dict[int, dict[bytes, list[PeerId]]] = {}
    for record in records:
        for block in range(record.span.start, record.span.end):
            digest = record.digest_of(block)
            if digest is not None:
                found.setdefault(block, {}).setdefault(digest, []).append(record.peer)
    return {block: sides for block, sides in found.items() if len(sides) > 1}


class Agreement:
    """Remembers where the servers were reached, and says once who is outvoted."""

    def __init__(self) -> None:
        self._places: dict[PeerId, str] = {}
        self._told: set[PeerId] = set()

    def reached(self, peer: PeerId, address: str) -> None:
        """There is a link to the server at this multiaddress."""
        self._places[peer] = group_of_address(address)

    def keep(self, peers: Collection[PeerId]) -> None:
        """These are the servers that still announce themselves; others are forgotten."""
        self._places = {peer: place for peer, place in self._places.items() if peer in peers}
        self._told &= set(peers)

    def doubted(self, records: "Sequence[ServerRecord]", *, tell: bool = False) -> set[PeerId]:
        """Those that are outvoted among the servers of one checkpoint. `tell`: in the log, too."""
        found = outvoted(records, self._places)
        fresh = [peer for peer in found if peer not in self._told]
        if tell and fresh:
            self._told.update(fresh)
            logger.warning(
                "%s: used only where nobody else serves their blocks, for they announce other "
                "contents of that block than others of this model do; their files may be damaged",
                listed([f"{peer} (block {found[peer]})" for peer in fresh]),
            )
        return set(found)
