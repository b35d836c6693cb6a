"""What a link tells of itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinkStats:
    """A link as it is now; times in seconds, None while unknown."""

    up: bool
    rtt_s: float | None
    """Smoothed round trip of pings."""
    min_rtt_s: float | None
    outstanding_bytes: int
    """What waits to be sent or is not acknowledged."""
    unfinished_bytes: int
    bytes_sent: int
    bytes_received: int
    streams: int
    """How many raw streams the link has had."""
    rate_bytes_per_s: float | None
    """What the way to the peer delivers, learnt from acknowledgements."""
    window_bytes: int
    """How much may be in flight now."""
    fragment_bytes: int
    in_flight_bytes: int
    decode_active: bool
