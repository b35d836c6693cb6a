"""How much more comes at once than a rate tells: of paths and peers that go by fits and starts.

A radio that waits for its turn, or a busy machine, holds bytes up and lets them go together. Then
the least round trip is one that few bytes see, and who keeps no more than `rate x least round trip`
in flight measures less than the path brings, keeps less in flight, and so on down. What came beyond
the rate since it last fell behind it is what has to be in flight besides: the `extra acked` of BBR
(Cardwell et al., draft-cardwell-iccrg-bbr-congestion-control-02, section 4.5.5). Pure.
"""

from collections import deque

_GAIN = 1.05
"""What comes so much faster than the rate is no burst: a rate that is found a little too low would
be behind for ever else."""
MOST_S = 0.1
"""More than the rate brings in this time is not kept in flight for bursts, whatever they are."""


class Bursts:
    """Times are in seconds, rates in bytes a second."""

    def __init__(self) -> None:
        self._began = 0.0
        """When all that came was last no more than the rate tells."""
        self._came = 0
        """Bytes since then."""
        self._extras: deque[tuple[float, float]] = deque()
        """`(time, bytes)`, falling: the first is the largest that counts."""

    def add(self, size: int, rate: float, memory_s: float, now: float) -> None:
        """So many bytes came, of which `rate` comes in the long run; bursts of the last `memory_s`
        count."""
        expected = _GAIN * rate * (now - self._began)
        if self._came <= expected:
            self._began, self._came, expected = now, 0, 0.0
        self._came += size
        extra = min(self._came - expected, rate * MOST_S)
        while self._extras and self._extras[-1][1] <= extra:
            self._extras.pop()
        self._extras.append((now, extra))
        while now - self._extras[0][0] > memory_s:
            self._extras.popleft()

    def beyond(self, piece: int) -> int:
        """Bytes to keep in flight for the largest burst of late; what comes in pieces of so many
        bytes comes in bursts of one anyway."""
        return max(0, int(self._extras[0][1]) - piece) if self._extras else 0
