"""Servers whose blocks are not what the others serve under the same checkpoint.

A checkpoint's identity covers samples of its tensors only, but every server announces a digest over
all stored bytes of each of its blocks. A client has no blocks of its own to compare them with, so
the servers are compared with each other. That finds damaged files; it finds no lies.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarm.spans import PeerId

if TYPE_CHECKING:
    from swarm.dht.records import ServerRecord


def outvoted(records: "Sequence[ServerRecord]") -> dict[PeerId, int]:
    """Servers that announce a digest of some block of which more announce another one, each with
    its first such block. Where as many say the one as the other, nobody is outvoted."""
    votes: dict[int, Counter[bytes]] = {}
    for record in records:
        for block in range(record.span.start, record.span.end):
            digest = record.digest_of(block)
            if digest is not None:
                votes.setdefault(block, Counter())[digest] += 1
    disputed = {block: max(count.values()) for block, count in votes.items() if len(count) > 1}
    found: dict[PeerId, int] = {}
    for record in records:
        for block in sorted(disputed):
            digest = record.digest_of(block)
            if digest is not None and votes[block][digest] < disputed[block]:
                found.setdefault(record.peer, block)
    return found
