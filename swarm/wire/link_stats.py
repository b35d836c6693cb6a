"""What a link tells of itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinkStats:
    """A link as it is now; times in seconds, None while unknown."""

    up: bool
    heard_s: float | None
    """How long ago something came over this stream; None while there is none."""
    unanswered_s: float
    """How long a ping has waited while nothing came; 0 if none does."""
    rtt_s: float | None
    """Smoothed round trip of pings."""
    min_rtt_s: float | None
    """The least of the last 10 s, which the window is made of."""
    outstanding_bytes: int
    """What waits to be sent or is not acknowledged."""
    unfinished_bytes: int
    """Announced by messages that have begun to come and not ended."""
    bytes_sent: int
    bytes_received: int
    streams: int
    """How many raw streams the link has had, one after the other."""
    lanes: int
    """Over how many streams at once we send now; 0 while the link is not up."""
    rate_bytes_per_s: float | None
    """What the way to the peer delivers, learnt from acknowledgements."""
    window_bytes: int
    """How much may be in flight now."""
    fragment_bytes: int
    """The longest fragment now, but for decode."""
    in_flight_bytes: int
    decode_active: bool
    """Whether decode goes out over any link of the process, so that windows are small."""
