"""What all links of a process have in common."""

from dataclasses import dataclass, field

from swarm.scheduling.client_groups import ClientGroups
from swarm.scheduling.decode_activity import DecodeActivity
from swarm.scheduling.downlink import Downlink
from swarm.wire.inbox import UnfinishedBudget
from swarm.wire.rate import TokenBucket
from swarm.wire.upload_limit import UploadLimit

CONTROL_BURST_S = 5.0


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """Numbers that hold for each link, and what the links share."""

    max_outstanding_bytes: int
    """Of one link: waiting, or not acknowledged."""
    control_per_s: float
    """Small messages that one peer may send, with bursts of `CONTROL_BURST_S`."""
    unfinished: UnfinishedBudget
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
