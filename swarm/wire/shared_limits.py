"""What all links of a process have in common."""

import os
from dataclasses import dataclass, field

from swarm.scheduling.client_groups import ClientGroups
from swarm.scheduling.decode_activity import DecodeActivity
from swarm.scheduling.downlink import Downlink
from swarm.wire.fair_budget import FairBudget
from swarm.wire.frames import MAX_MESSAGE_BYTES
from swarm.wire.rate import TokenBucket
from swarm.wire.upload_limit import UploadLimit

CONTROL_BURST_S = 5.0
MAX_LINK_MEMORY_BYTES = 1 << 30
"""What links may hold of unfinished messages, and as much again of outstanding ones, where there
is plenty of memory."""
LINK_MEMORY_SHARE = 12
"""The same as a part of what is free. Both kinds, at three times that, which a `FairBudget` can
come to, are half of it. A server may keep as much again, once, for links that are being made."""


def link_memory_bytes(free_bytes: int) -> int:
    """`Links`' share of so much free memory; never less than one message takes."""
    return max(MAX_MESSAGE_BYTES, min(MAX_LINK_MEMORY_BYTES, free_bytes // LINK_MEMORY_SHARE))


def machine_memory_bytes() -> int:
    """All memory of this machine, free or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """Numbers that hold for each link, and what the links share."""

    max_outstanding_bytes: int
    """Of one link: waiting, or not acknowledged."""
    control_per_s: float
    """Small messages that one peer may send, with bursts of `CONTROL_BURST_S`."""
    unfinished: FairBudget
    """What has come of messages that have not ended."""
    outstanding: FairBudget
    """What waits to be sent, or is not acknowledged."""
    upload: UploadLimit | None = None
    """None: links send as fast as they can."""
    sending_decode: DecodeActivity = field(default_factory=DecodeActivity)
    """Whether decode goes out over any link."""
    downlink: Downlink = field(default_factory=Downlink)
    """Who sends to us, and how far ahead each may."""

    groups: ClientGroups = field(default_factory=ClientGroups)
    """Told where peers are; in which group a client is served."""

    def control_bucket(self, now: float) -> TokenBucket:
        """A link's own."""
        return TokenBucket(self.control_per_s, CONTROL_BURST_S * self.control_per_s, now)
