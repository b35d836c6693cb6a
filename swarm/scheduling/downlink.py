"""How far ahead of us each peer may send, so that all of them together keep our way in free.

A sender knows its own path, and keeps it short while it sends decode (`link_window`). It does not
know that others send to the same receiver, and that their decode stands behind its prompts in the
queue before the receiver's line. The receiver sees all of them: while decode comes in, it divides
what its line was found to bring among those who send anything else, and grants each of them its
part for one round trip, and two fragments more. Parts are max-min fair: who uses less than an
equal part leaves the rest to the others. Pure; times are in seconds, rates in bytes a second.
"""

from collections import deque

from swarm.scheduling.bursts import Bursts
from swarm.scheduling.decode_activity import ACTIVE_S
from swarm.scheduling.link_window import FRAGMENT_S, INITIAL_WINDOW_BYTES, MIN_FRAGMENT_BYTES

INTERVAL_S = 0.1
"""A rate is measured over so long, or a round trip where that is longer."""
MEMORY_S = 1.0
"""The largest rate of this time counts, or of so many round trips as `_MEMORY_ROUNDS`."""
_MEMORY_ROUNDS = 10
LINE_GAIN = 1.05
"""So much more than the line was found to bring is granted: else it could never bring more."""
SENDER_GAIN = 1.5
"""So much more than it sent may be granted to a sender that sends less than an equal part."""


def memory_s_of(interval_s: float) -> float:
    """How long rates and bursts count, which are measured over so long."""
    return max(MEMORY_S, _MEMORY_ROUNDS * interval_s)


class RateMeter:
    """The largest rate of the last intervals in which something came all the time."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._bytes = 0
        self._last = 0.0
        self._rates: deque[tuple[float, float]] = deque()
        """`(time, rate)`, falling: the first is the largest that counts."""

    def add(self, size: int, interval_s: float, now: float) -> bool:
        """So many bytes came; whether an interval ended with them."""
        if self._began is None or now - self._last > interval_s:
            # What comes first took its time before; and a pause proves nothing.
            self._began, self._bytes, self._last = now, 0, now
            return False
        self._bytes, self._last = self._bytes + size, now
        if now - self._began < interval_s:
            return False
        rate = self._bytes / (now - self._began)
        self._began, self._bytes = now, 0
        while self._rates and self._rates[-1][1] <= rate:
            self._rates.pop()
        self._rates.append((now, rate))
        while now - self._rates[0][0] > memory_s_of(interval_s):
            self._rates.popleft()
        return True

    @property
    def rate(self) -> float | None:
        return self._rates[0][1] if self._rates else None


class DownlinkSender:
    """One peer's part of the line; made by `Downlink.join`."""

    def __init__(self, downlink: "Downlink") -> None:
        self._downlink = downlink
        self.meter = RateMeter()
        self.rtt_s = 0.0
        self.last_data = float("-inf")
        self.part: float | None = None
        """What it is granted; None: nothing is known yet."""

    def decode_came(self, now: float) -> None:
        """A decode step came from this peer."""
        downlink = self._downlink
        if downlink.decode_from is not self:
            downlink.decode_before, downlink.decode_from = downlink.decode_at, self
        downlink.decode_at = now

    def data_came(self, size: int, rtt_s: float | None, now: float) -> int | None:
        """A fragment of anything else came, over a path with this least round trip. How many bytes
        beyond what has come the peer may send now; None: as many as it likes."""
        self.rtt_s = rtt_s or 0.0
        self._downlink.data_came(self, size, now)
        if not self._downlink.is_shared_with_decode(self, now):
            return None
        if self.part is None:
            return INITIAL_WINDOW_BYTES
        fragment = int(max(MIN_FRAGMENT_BYTES, self.part * FRAGMENT_S))
        bursts_s = self._downlink.bursts_s
        return int(self.part * (self.rtt_s + bursts_s)) + 2 * fragment

    def leave(self) -> None:
        """The link is over."""
        self._downlink.senders.discard(self)
        if self._downlink.decode_from is self:
            self._downlink.decode_from = None


class Downlink:
    """All peers that send to us, and what our line brings in."""

    def __init__(self) -> None:
        self.senders: set[DownlinkSender] = set()
        """Those who sent anything but decode of late."""
        self.decode_from: DownlinkSender | None = None
        self.decode_at = float("-inf")
        """When decode came last, from that peer."""
        self.decode_before = float("-inf")
        """When it came last from another one."""
        self._meter = RateMeter()
        self._bursts = Bursts()

    def join(self) -> DownlinkSender:
        return DownlinkSender(self)

    @property
    def rate_bytes_per_s(self) -> float | None:
        """What the line was found to bring, of anything but decode."""
        return self._meter.rate

    @property
    def bursts_s(self) -> float:
        """So long the line takes for what comes at once where nothing held it up."""
        rate = self._meter.rate
        if rate is None:
            return 0.0
        return self._bursts.beyond(int(max(MIN_FRAGMENT_BYTES, rate * FRAGMENT_S))) / rate

    def decode_is_active(self, now: float) -> bool:
        """Whether decode comes in, from whomever."""
        return now - self.decode_at <= ACTIVE_S

    def is_shared_with_decode(self, sender: DownlinkSender, now: float) -> bool:
        """Whether decode of others may stand behind what `sender` sends; of its own it knows."""
        several = len(self.senders) > 1 or self.decode_from is not sender
        return now - (self.decode_at if several else self.decode_before) <= ACTIVE_S

    def data_came(self, sender: DownlinkSender, size: int, now: float) -> None:
        sender.last_data = now
        interval_s = max(INTERVAL_S, sender.rtt_s)
        changed = sender.meter.add(size, interval_s, now)
        if sender not in self.senders:
            self.senders.add(sender)
            changed = True
        if self._meter.add(size, interval_s, now) or changed:
            self._divide(now)
        rate = self._meter.rate
        if rate is not None:
            self._bursts.add(size, rate, interval_s, now)

    def _divide(self, now: float) -> None:
        for sender in [s for s in self.senders if now - s.last_data > MEMORY_S + s.rtt_s]:
            self.senders.discard(sender)
        rate = self._meter.rate
        if rate is None:
            return
        left = LINE_GAIN * rate
        uses = [(rate if s.meter.rate is None else s.meter.rate, s) for s in self.senders]
        uses.sort(key=lambda pair: pair[0])
        for index, (used, sender) in enumerate(uses):
            equal = left / (len(uses) - index)
            sender.part = min(equal, SENDER_GAIN * used)
            # What it may want more is not taken from others before it is used.
            left -= min(equal, used)
