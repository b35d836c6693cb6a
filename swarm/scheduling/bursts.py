"""How much more comes at once than a rate tells: of paths and peers that go by fits and starts.

A radio that waits for its turn, or a busy machine, holds bytes up and lets them go together. Then
the least round trip is one that few bytes see, and who keeps no more than `rate x least round trip`
in flight measures less than the path brings, keeps less in flight, and so on down. What came beyond
the rate since it last fell behind it is what has to be in flight besides: the `extra acked` of BBR
(Cardwell et al., draft-cardwell-iccrg-bbr-congestion-control-02, section 4.5.5), but that of most
of the time, not the largest: a few pauses make no path uneven. Pure.
"""

from collections import deque

_GAIN = 1.05
"""What comes so much faster than the rate is no burst: a rate that is found a little too low would
be behind for ever else."""
MAX_S = 0.1
"""More than the rate brings in this time is not kept in flight for bursts, whatever they are."""
_INTERVALS = 9
_COUNTS = 6
"""Of so many intervals in which something came two bring more than what counts."""


class Bursts:
    """Times are in seconds, rates in bytes a second."""

    def __init__(self) -> None:
        self._began = 0.0
        """When all that came was last no more than the rate tells, in the present interval."""
        self._came = 0
        """Bytes since then."""
        self._interval_ends = 0.0
        self._largest: deque[float] = deque(maxlen=_INTERVALS)
        """The largest burst of each interval, in bytes; the last one is not over."""
        self._usual = 0.0
        """Of the intervals that are over."""

    def add(self, size: int, rate: float, interval_s: float, now: float) -> None:
        """So many bytes came, of which `rate` comes in the long run. An interval takes about a
        round trip."""
        if now >= self._interval_ends:
            if len(self._largest) == _INTERVALS:
                self._usual = sorted(self._largest)[_COUNTS]
            self._interval_ends = now + interval_s
            self._largest.append(0.0)
            self._came = 0
        expected = _GAIN * rate * (now - self._began)
        if self._came <= expected:
            self._began, self._came, expected = now, 0, 0.0
        self._came += size
        extra = min(self._came - expected, rate * MAX_S)
        self._largest[-1] = max(self._largest[-1], extra)

    def beyond(self, piece: int) -> int:
        """Bytes to keep in flight for the usual burst; what comes in pieces of so many bytes comes
        in bursts of one anyway."""
        return max(0, int(self._usual) - piece)
