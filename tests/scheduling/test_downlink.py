"""Several senders into one line, on a virtual clock: full, a short queue, fairly shared."""

from heapq import heappop, heappush

from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.scheduling.downlink import INITIAL_WINDOW_BYTES, Downlink

BEGIN = 1 << 22
"""What a sender is granted before anything has come."""


class Sender:
    def __init__(self, downlink: Downlink, rtt_s: float, own_rate: float) -> None:
        self.end = downlink.join()
        self.rtt_s = rtt_s
        self.own_rate = own_rate
        self.sent = self.received = 0
        self.limit = INITIAL_WINDOW_BYTES
        self.own_free_at = 0.0


class Line:
    """Each fragment passes its sender's own line and then ours; what we grant for it comes back a
    round trip later. Senders know nothing of windows: they send what they may."""

    def __init__(self, rate: float, senders: list[tuple[float, float]]) -> None:
        self.downlink = Downlink()
        self.decoder = self.downlink.join()
        self.rate = rate
        self.senders = [Sender(self.downlink, *each) for each in senders]
        self.events: list[tuple[float, int, int, int, int]] = []
        self.order = 0
        self.free_at = self.now = self.next_decode = 0.0
        self.queue_s: list[float] = []
        self.decoding = True

    def at(self, when: float, kind: int, sender: int, size: int) -> None:
        self.order += 1
        heappush(self.events, (when, self.order, kind, sender, size))

    def send(self, index: int) -> None:
        """As much as may be on its way, in fragments."""
        sender = self.senders[index]
        while sender.limit > sender.sent:
            fragment = max(2048, min(8192, (sender.limit - sender.received) // 4))
            size = min(fragment, sender.limit - sender.sent)
            sender.sent += size
            sender.own_free_at = max(self.now, sender.own_free_at) + size / sender.own_rate
            self.at(sender.own_free_at, 0, index, size)

    def run(self, seconds: float) -> list[int]:
        """What has come of each sender's in this time."""
        before = [sender.received for sender in self.senders]
        end = self.now + seconds
        for index in range(len(self.senders)):
            self.send(index)
        while self.events and self.events[0][0] <= end:
            self.now, _, kind, index, size = heappop(self.events)
            while self.decoding and self.next_decode <= self.now:
                self.decoder.decode_came(self.next_decode)
                self.next_decode += 0.1
            sender = self.senders[index]
            if kind == 0:  # reaches our line
                self.queue_s.append(max(0.0, self.free_at - self.now))
                self.free_at = max(self.now, self.free_at) + size / self.rate
                self.at(self.free_at, 1, index, size)
            elif kind == 1:  # came
                sender.received += size
                rtt_s = sender.rtt_s + size / self.rate
                beyond = sender.end.data_came(size, rtt_s, self.now)
                limit = sender.received + (BEGIN if beyond is None else beyond)
                self.at(self.now + sender.rtt_s, 2, index, limit)
            else:
                sender.limit = size
                self.send(index)
        self.now = end
        return [
            sender.received - earlier for sender, earlier in zip(self.senders, before, strict=True)
        ]


rates = st.sampled_from([250e3, 2.5e6, 12.5e6])
round_trips = st.sampled_from([0.001, 0.02, 0.08])


@settings(max_examples=12, deadline=None)
@given(rates, st.lists(round_trips, min_size=1, max_size=5))
def test_the_line_is_full_its_queue_short_and_the_parts_are_alike(
    rate: float, round_trips: list[float]
) -> None:
    line = Line(rate, [(rtt_s, 1e9) for rtt_s in round_trips])
    line.run(6.0)
    line.queue_s.clear()
    came = line.run(4.0)
    assert sum(came) >= 0.9 * rate * 4.0
    assert min(came) >= 0.5 * sum(came) / len(came)
    queue = sorted(line.queue_s)
    longest_s = max(round_trips)
    bound_s = 0.03 + 0.2 * longest_s + len(came) * 8192 / rate
    assert queue[int(0.95 * len(queue))] <= bound_s


@settings(max_examples=6, deadline=None)
@given(st.floats(0.05, 0.4), round_trips)
def test_who_has_a_slow_line_of_its_own_leaves_the_rest_to_others(
    part: float, rtt_s: float
) -> None:
    rate = 2.5e6
    line = Line(rate, [(rtt_s, part * rate), (rtt_s, 1e9)])
    line.run(6.0)
    slow, fast = line.run(4.0)
    assert slow >= 0.7 * part * rate * 4.0
    assert fast >= 0.85 * (1 - part) * rate * 4.0


def test_own_lines_that_are_slower_than_ours_stay_full() -> None:
    line = Line(1e9, [(0.05, 1e6), (0.02, 3e6), (0.1, 0.5e6)])
    line.run(6.0)
    assert [
        came >= 0.9 * own * 4 for came, own in zip(line.run(4.0), (1e6, 3e6, 0.5e6), strict=True)
    ] == [True] * 3


def test_without_decode_nobody_is_held_back() -> None:
    line = Line(2.5e6, [(0.02, 1e9), (0.02, 1e9)])
    line.decoding = False
    sender = line.senders[0]
    for _ in range(100):
        line.now += 0.01
        for each in line.senders:
            assert each.end.data_came(10_000, 0.02, line.now) is None
    line.decoder.decode_came(line.now)
    assert sender.end.data_came(10_000, 0.02, line.now) is not None


def test_a_peer_that_sends_alone_knows_of_its_own_decode() -> None:
    downlink = Downlink()
    one, other = downlink.join(), downlink.join()
    one.decode_came(10.0)
    assert one.data_came(1000, 0.02, 10.1) is None
    assert other.data_came(1000, 0.02, 10.2) is not None, "of others' decode it does not"
    assert one.data_came(1000, 0.02, 10.3) is not None, "and now there are two"
    assert one.data_came(1000, 0.02, 12.2) is None, "the decode is over"
    other.leave()
    other.decode_came(20.0)
    one.decode_came(20.1)
    assert one.data_came(1000, 0.02, 20.2) is not None
    assert one.data_came(1000, 0.02, 22.05) is None


def test_those_who_left_and_those_who_are_silent_get_no_part() -> None:
    downlink = Downlink()
    decoder, one, other = downlink.join(), downlink.join(), downlink.join()
    now = 0.0
    for _ in range(200):
        now += 0.01
        decoder.decode_came(now)
        one.data_came(10_000, 0.0, now)
        other.data_came(10_000, 0.0, now)
    shared = one.part
    assert shared is not None and downlink.rate_bytes_per_s is not None
    assert shared < 0.6 * downlink.rate_bytes_per_s
    other.leave()
    for _ in range(150):
        now += 0.005
        decoder.decode_came(now)
        one.data_came(10_000, 0.0, now)
    assert one.part > 0.9 * downlink.rate_bytes_per_s
