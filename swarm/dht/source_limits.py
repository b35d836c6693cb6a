"""How much each peer may make us store: a token bucket per source."""

from collections import OrderedDict

STORE_BYTES_PER_S = 64 * 1024
"""A server stores about 2 KB every 20 s; a holder that meets us may hand over many records."""
STORE_BURST_BYTES = 8 << 20
MAX_SOURCES = 4096


class SourceLimits:
    """Token buckets by source; the sources heard last are remembered."""

    def __init__(
        self, bytes_per_s: float = STORE_BYTES_PER_S, burst_bytes: float = STORE_BURST_BYTES
    ) -> None:
        self._rate = bytes_per_s
        self._burst = burst_bytes
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allow(self, source: str, size: int, now: float) -> bool:
        """Whether `source` may store `size` bytes at `now` (seconds); takes them if so."""
        left, then = self._buckets.pop(source, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        allowed = size <= left
        self._buckets[source] = (left - size if allowed else left, now)
        if len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return allowed
