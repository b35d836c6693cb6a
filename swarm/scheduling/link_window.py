"""How much a link keeps in flight, and how finely it cuts: learnt from acknowledgements.

Bytes that are handed to the network can no longer be overtaken, so while decode is active a link
keeps `rate x least round trip` of them in flight, which fills the path, and two fragments more;
a decode message then waits for at most these. The estimates are made as in BBR (Cardwell et al.,
ACM Queue 14(5), 2016): the rate is the largest delivery rate of the last rounds, from samples that
the application did not limit; the round trip is the least of the last seconds, measured anew with
nothing else in flight when it is old. Pure: told of what is sent and acknowledged, with the time.
"""

from collections import deque
from dataclasses import dataclass

from swarm.scheduling.bursts import Bursts

MIN_FRAGMENT_BYTES = 2 * 1024
MAX_FRAGMENT_BYTES = 64 * 1024
"""Beside decode, and on all paths but very fast ones."""
LONG_FRAGMENT_BYTES = 256 * 1024
"""Where no decode is active, and it takes no longer than `LONG_FRAGMENT_S`, which is from 0.5
Gbit/s on: there a fragment costs both ends as much by itself as by its bytes."""
LONG_FRAGMENT_S = 0.004
FRAGMENT_S = 0.006
"""A fragment takes so long on the wire, within the bounds above. Decode waits for up to three: one
to two that are in flight beyond what fills the path, and one that the measured round trip itself
contains; together about 20 ms."""
IDLE_FRAGMENT_S = 0.02
"""The same while no decode is active."""
IDLE_QUEUE_S = 0.01
"""While no decode is active so much may wait in the path's queue, or four fragments where these are
more: on a fast path they would be over before the next turn of a busy peer."""
INITIAL_WINDOW_BYTES = 32 * 1024
"""Before anything is known."""
DECODE_INITIAL_WINDOW_BYTES = 12 * 1024
"""The same beside decode: at 1 Mbit/s it waits for 0.1 s."""
MIN_RATE_BYTES_PER_S = 125_000.0
"""Every path is taken to bring 1 Mbit/s: at this pace more than the first window may follow over a
long path without standing in its queue."""
STARTUP_GAIN = 2.0
"""The window doubles with each round trip while the delivered rate grows. Before the first answer
comes back late, up to what the path holds once more may stand in the queue, once."""
STARTUP_PACE_GAIN = 2.885
"""2 / ln 2, as in BBR: the pace is made of a rate that is one to two round trips old, and must
double in that time, too."""
PACE_GAIN = 1.25
"""Beside decode, fragments leave at most so much faster than the path delivers: a window that
opens at once would stand in the path's queue at once."""
EVEN_ENOUGH = 2
"""Bursts of no more than this part of what the path holds cost prompts less than a fifth of its
rate. They are not kept in flight: decode would wait for them, twice as long on such a path."""
MAX_STREAM_BYTES = 64 * 1024
MIN_LONG_RTT_S = 0.005
"""A path that holds more than so many bytes needs several streams, if it is longer than this."""
RTT_MEMORY_S = 10.0
_LOOKS = 3
"""Before a longer round trip is believed: one alone may have met decode, or a busy peer, and what
is believed wrongly fills the path's queue until the next look."""
_SAME_RTT = 1.05
"""An answer so little later than the least round trip says that this is still right."""
_MIN_PAUSE_S = 1e-4
_RATE_ROUNDS = 10
_RATE_MEMORY_S = 0.5
"""The rate is the largest of this time, or of so many round trips where they are longer."""
_BURSTS_S = 0.05
"""Bursts are looked for in so long at least, or in a round trip."""
_FULL_ROUNDS = 3
_FULL_GROWTH = 1.25
_LATE = 1.25
_LATE_ANSWERS = 4
"""So many late answers in a row end the start, too."""
_MUCH_LATE_S = 0.02
"""An answer so much later still tells of a queue that harms decode, and not of a busy receiver."""
_MUCH_LATE_ANSWERS = 2
"""So many of them in a row prove that the path is slower than was believed, also where all that
there was to send fits the window: a rate that fell would be believed for ever else."""


@dataclass(slots=True)
class _Sent:
    """What was known when the bytes `begin` to `end` were sent."""

    begin: int
    end: int
    at: float
    delivered: int
    delivered_at: float
    first_sent_at: float
    app_limited: bool
    urgent: bool
    drained: bool
    """Sent with nothing but decode in flight, to measure the round trip."""


class LinkWindow:
    """One direction of a link. Bytes are of DATA bodies; times are in seconds."""

    def __init__(self) -> None:
        self.rate_bytes_per_s: float | None = None
        self.min_rtt_s: float | None = None
        self._rtt_at = 0.0
        """When the least round trip was last seen."""
        self._rates: deque[tuple[float, float]] = deque()
        """`(time, rate)`, falling: the first is the largest that counts."""
        self._bursts = Bursts()
        self._startup = True
        self._full_rate = 0.0
        self._full_rounds = 0
        self._next_round = 0
        self._round_rtt_s = float("inf")
        """The least round trip of the present round."""
        self._probing_rtt = False
        self._longer: list[float] = []
        """Round trips that were measured since the least one is old."""
        self._late_answers = 0
        self._much_late_answers = 0
        self.begin_stream(0.0)

    def begin_stream(self, now: float) -> None:
        """Nothing is in flight on the new stream; what was learnt stays."""
        self.sent_bytes = 0
        self.delivered_bytes = 0
        self._patient_end = 0
        self._delivered_at = now
        self._first_sent_at = now
        self._app_limited_until = -1
        self._next_round = 0
        self._records: deque[_Sent] = deque()
        self._paid_until = now
        """When all that was sent will have left, at the pace of `PACE_GAIN`."""

    # ---- decisions

    @property
    def in_flight(self) -> int:
        """Sent and not acknowledged."""
        return self.sent_bytes - self.delivered_bytes

    @property
    def outgrows_a_stream(self) -> bool:
        """Whether the path holds so much that a stream of the transport may stand still for want
        of its grant (`swarm.wire.lanes`)."""
        rate, rtt_s = self.rate_bytes_per_s, self.min_rtt_s
        if rate is None or rtt_s is None or rtt_s < MIN_LONG_RTT_S:
            return False
        return rate * rtt_s > MAX_STREAM_BYTES

    def fragment_bytes(self, decode_active: bool) -> int:
        """The longest fragment to be sent now, unless it is decode itself."""
        rate = self.rate_bytes_per_s
        if rate is None:
            return (DECODE_INITIAL_WINDOW_BYTES if decode_active else INITIAL_WINDOW_BYTES) // 4
        if not decode_active and rate * LONG_FRAGMENT_S >= LONG_FRAGMENT_BYTES:
            return LONG_FRAGMENT_BYTES
        wanted = int(rate * (FRAGMENT_S if decode_active else IDLE_FRAGMENT_S))
        return max(MIN_FRAGMENT_BYTES, min(MAX_FRAGMENT_BYTES, wanted))

    def window_bytes(self, decode_active: bool) -> int:
        """With less than this in flight the next fragment may follow: so beside decode the path is
        full and one to two fragments wait in its queue, and more only on a path whose bytes come by
        fits and starts (`Bursts`)."""
        return 0 if self._probing_rtt else self._full_window_bytes(decode_active)

    def _full_window_bytes(self, decode_active: bool) -> int:
        """The same, also while the round trip is measured anew."""
        initial = DECODE_INITIAL_WINDOW_BYTES if decode_active else INITIAL_WINDOW_BYTES
        initial = max(initial, int(MIN_RATE_BYTES_PER_S * (self.min_rtt_s or 0.0)))
        if self.rate_bytes_per_s is None or self.min_rtt_s is None:
            return initial
        fragment = self.fragment_bytes(decode_active)
        path = int(self.rate_bytes_per_s * self.min_rtt_s)
        if self._startup:
            return max(initial, int(STARTUP_GAIN * path) + 2 * fragment)
        bursts = self._bursts.beyond(fragment)
        if bursts > path // EVEN_ENOUGH:
            path += bursts
        if decode_active:
            return path + fragment
        return 2 * path + max(4 * fragment, int(self.rate_bytes_per_s * IDLE_QUEUE_S))

    def may_send(self, decode_active: bool) -> bool:
        """Whether a fragment of work that can wait may go out now, as far as the window goes."""
        if self.delivered_bytes >= self._patient_end:
            return True  # nothing else is in flight that the peer answers at once
        return self.in_flight < self.window_bytes(decode_active)

    def pause_s(self, now: float, decode_active: bool) -> float:
        """How long work that can wait has to wait for its pace; 0: no longer."""
        pace = self._pace(decode_active)
        if pace is None:
            return 0.0
        burst_s = 2 * self.fragment_bytes(decode_active) / pace
        wait_s = self._paid_until - now - burst_s
        return wait_s if wait_s > _MIN_PAUSE_S else 0.0

    def _pace(self, decode_active: bool) -> float | None:
        """Bytes a second; None: as they come. A path that holds no more than the two fragments on
        top needs none, and its fragments would be too quick for timers."""
        rate, rtt_s = self.rate_bytes_per_s, self.min_rtt_s
        if not decode_active or rtt_s is None:
            return None
        if self._startup:
            if self._full_window_bytes(True) <= DECODE_INITIAL_WINDOW_BYTES:
                return None
            return max(MIN_RATE_BYTES_PER_S, STARTUP_PACE_GAIN * (rate or 0.0))
        if rate is None or rate * rtt_s <= 2 * self.fragment_bytes(True):
            return None
        return rate * PACE_GAIN

    def may_send_decode(self) -> bool:
        """The same for decode: only a link that decode alone fills holds it back."""
        return self.in_flight < self._full_window_bytes(False) + 2 * MAX_FRAGMENT_BYTES

    # ---- events

    def sent(self, size: int, now: float, *, urgent: bool, crowded: bool = False) -> None:
        """`size` bytes were written. `urgent`: control or decode, which the peer need not
        acknowledge at once. `crowded`: decode waits, too, so that decode alone may fill the
        path's queue, and no round trip is measured."""
        if not self.in_flight:
            self._first_sent_at = self._delivered_at = now
        alone = self.delivered_bytes >= self._patient_end
        drained = self._probing_rtt and not urgent and alone and not crowded
        if drained:
            self._probing_rtt = False
        begin = self.sent_bytes
        self.sent_bytes += size
        if not urgent:
            self._patient_end = self.sent_bytes
            pace = self._pace(True)
            if pace is not None:
                self._paid_until = max(self._paid_until, now) + size / pace
        self._records.append(
            _Sent(
                begin,
                self.sent_bytes,
                now,
                self.delivered_bytes,
                self._delivered_at,
                self._first_sent_at,
                self.delivered_bytes <= self._app_limited_until,
                urgent,
                drained,
            )
        )

    def ran_dry(self) -> None:
        """There was room for more, and nothing to send: what is in flight proves no limit."""
        self._app_limited_until = self.sent_bytes

    def acknowledged(self, received: int, now: float) -> None:
        """The peer has received so many bytes of this stream, in all."""
        received = min(received, self.sent_bytes)
        if received <= self.delivered_bytes:
            return
        self.delivered_bytes = received
        self._delivered_at = now
        newest: _Sent | None = None
        alone: _Sent | None = None
        patient = 0
        while self._records and self._records[0].end <= received:
            newest = self._records.popleft()
            if not newest.urgent:
                patient += newest.end - newest.begin
            if newest.drained:
                alone = newest
        if newest is None:
            return
        self._first_sent_at = newest.at
        if alone is not None:
            self.round_trip(now - alone.at, now, drained=True)
        elif not newest.urgent:
            self.round_trip(now - newest.at, now)
        self._round_rtt_s = min(self._round_rtt_s, now - newest.at)
        if self._startup:
            self._late_answers = self._late_answers + 1 if self._is_late(now - newest.at) else 0
            self._startup = self._late_answers < _LATE_ANSWERS
        if not newest.urgent:
            much = self._is_late(now - newest.at, _MUCH_LATE_S)
            self._much_late_answers = self._much_late_answers + 1 if much else 0
        interval = max(now - newest.delivered_at, newest.at - newest.first_sent_at)
        first = self.rate_bytes_per_s is None and not newest.urgent
        if interval > 0:
            rate = (received - newest.delivered) / interval
            queued = self._much_late_answers >= _MUCH_LATE_ANSWERS
            unproven = queued and now - self._rates[0][0] > self._memory_s
            self._rate_sample(rate, now, newest.app_limited and not unproven and not first)
        if patient and self.rate_bytes_per_s is not None:
            interval_s = max(_BURSTS_S, self.min_rtt_s or 0.0)
            self._bursts.add(patient, self.rate_bytes_per_s, interval_s, now)
        if newest.delivered >= self._next_round:
            self._next_round = received
            self._round_ended(newest.app_limited)

    def round_trip(self, rtt_s: float, now: float, *, drained: bool = False) -> None:
        """A round trip was measured, by a fragment or by a ping. `drained`: when that was sent,
        nothing was in flight."""
        old = now - self._rtt_at > RTT_MEMORY_S
        if drained and old:
            self._longer.append(rtt_s)
            if len(self._longer) == _LOOKS:
                self.min_rtt_s = rtt_s = min(self._longer)
        if self.min_rtt_s is None or rtt_s <= self.min_rtt_s:
            self.min_rtt_s = rtt_s
        elif rtt_s > _SAME_RTT * self.min_rtt_s:
            self._probing_rtt = old
            return
        self._rtt_at = now
        self._probing_rtt = False
        self._longer.clear()

    @property
    def _memory_s(self) -> float:
        """How long a rate sample counts."""
        return max(_RATE_MEMORY_S, _RATE_ROUNDS * (self.min_rtt_s or 0.0))

    def _rate_sample(self, rate: float, now: float, app_limited: bool) -> None:
        if app_limited and (self.rate_bytes_per_s is None or rate <= self.rate_bytes_per_s):
            return
        while self._rates and self._rates[-1][1] <= rate:
            self._rates.pop()
        self._rates.append((now, rate))
        while now - self._rates[0][0] > self._memory_s:
            self._rates.popleft()
        self.rate_bytes_per_s = self._rates[0][1]

    def _is_late(self, rtt_s: float, more_s: float = 0.0) -> bool:
        """Whether an answer says that there is a queue (of `more_s` more)."""
        rate, least_s = self.rate_bytes_per_s, self.min_rtt_s
        if rate is None or least_s is None:
            return False
        return rtt_s > _LATE * least_s + 2 * self.fragment_bytes(True) / rate + more_s

    def _round_ended(self, app_limited: bool) -> None:
        """The start is over when three rounds in a row did not raise the rate by a quarter, or when
        every answer of a round is late: what is sent more now stands in a queue."""
        rate, rtt_s, self._round_rtt_s = self.rate_bytes_per_s, self._round_rtt_s, float("inf")
        if not self._startup or app_limited or rate is None or self.min_rtt_s is None:
            return
        if self._is_late(rtt_s):
            self._startup = False
        elif rate >= _FULL_GROWTH * self._full_rate:
            self._full_rate, self._full_rounds = rate, 0
        else:
            self._full_rounds += 1
            self._startup = self._full_rounds < _FULL_ROUNDS
