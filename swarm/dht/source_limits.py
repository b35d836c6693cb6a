"""How much each peer may make us store and look up: token buckets per source."""

from collections import OrderedDict

import msgspec

STORE_BYTES_PER_S = 16 * 1024
"""A server stores about 2 KB every 20 s; a holder that meets us hands over what we should keep."""
STORE_BURST_BYTES = 256 * 1024
STORE_RECORDS_PER_S = 4.0
STORE_BURST_RECORDS = 400
HANDED_OVER_BYTES = STORE_BURST_BYTES // 2
HANDED_OVER_RECORDS = STORE_BURST_RECORDS // 2
"""What we hand over to a peer that we meet; it hears of the rest when that is refreshed."""
MAX_FIND_BYTES = 4096
MAX_FIND_KEYS = 64
"""Of one question. A look-up asks for the `SHARDS` keys of a model, a few at a time."""
FIND_KEYS_PER_S = 64.0
FIND_BURST_KEYS = 1024
MAX_SOURCES = 4096

_extension = msgspec.msgpack.Decoder(msgspec.msgpack.Ext)
_dictionary = msgspec.msgpack.Decoder(tuple[msgspec.Raw, msgspec.Raw, list[msgspec.Raw]])


class SourceLimits:
    """Token buckets by source, of bytes and of records; the sources heard last are remembered."""

    def __init__(
        self,
        bytes_per_s: float = STORE_BYTES_PER_S,
        burst_bytes: float = STORE_BURST_BYTES,
        records_per_s: float = STORE_RECORDS_PER_S,
        burst_records: float = STORE_BURST_RECORDS,
    ) -> None:
        self._rates = (bytes_per_s, records_per_s)
        self._bursts = (burst_bytes, burst_records)
        self._buckets: OrderedDict[str, tuple[float, float, float]] = OrderedDict()

    def allow(self, source: str, size: int, records: int, now: float) -> bool:
        """Whether `source` may store `records` in `size` bytes at `now` (seconds); takes them
        from its buckets if so."""
        size_left, records_left, then = self._buckets.pop(source, (*self._bursts, now))
        size_left = min(self._bursts[0], size_left + (now - then) * self._rates[0])
        records_left = min(self._bursts[1], records_left + (now - then) * self._rates[1])
        allowed = size <= size_left and records <= records_left
        if allowed:
            size_left, records_left = size_left - size, records_left - records
        self._buckets[source] = (size_left, records_left, now)
        if len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return allowed


def find_limits() -> SourceLimits:
    """For questions: the keys are what is counted."""
    return SourceLimits(
        bytes_per_s=MAX_FIND_BYTES * FIND_KEYS_PER_S,
        burst_bytes=MAX_FIND_BYTES * FIND_BURST_KEYS,
        records_per_s=FIND_KEYS_PER_S,
        burst_records=FIND_BURST_KEYS,
    )


def records_in(packed_dictionary: bytes) -> int:
    """How many records hivemind's packed dictionary holds, without unpacking them; 1 for junk,
    which is refused later."""
    try:
        return len(_dictionary.decode(_extension.decode(packed_dictionary).data)[2])
    except (msgspec.MsgspecError, RecursionError):
        return 1
