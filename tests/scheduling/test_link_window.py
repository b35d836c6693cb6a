"""A link's window against a path with a rate, a delay and a queue, on a virtual clock."""

import math
from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.scheduling.link_window import (
    DECODE_INITIAL_WINDOW_BYTES,
    LONG_FRAGMENT_BYTES,
    MAX_FRAGMENT_BYTES,
    MIN_FRAGMENT_BYTES,
    MIN_RATE_BYTES_PER_S,
    RTT_MEMORY_S,
    LinkWindow,
)


class Line:
    """A sender that always has work, and a path: each fragment takes `size / rate`, one after the
    other, and its acknowledgement comes a round trip later."""

    def __init__(self, rate: float, rtt_s: float, window: LinkWindow | None = None) -> None:
        self.rate = rate
        self.rtt_s = rtt_s
        self.window = window or LinkWindow()
        self.now = 0.0
        self.window.begin_stream(self.now)
        self.window.round_trip(rtt_s, self.now, drained=True)  # by the first ping
        self.free_at = 0.0
        """When the path has sent all that it was given."""
        self.acknowledgements: deque[tuple[float, int]] = deque()
        self.queue_s: list[float] = []
        """How long the path's queue was when a fragment was added to it."""

    def run(
        self, seconds: float, decode_active: bool, more: Callable[[], bool] | None = None
    ) -> int:
        """Sends for so long; the bytes that came over."""
        end, before = self.now + seconds, self.window.delivered_bytes
        while self.now < end:
            size = self.window.fragment_bytes(decode_active)
            pause_s = self.window.pause_s(self.now, decode_active)
            if (more is None or more()) and self.window.may_send(decode_active):
                if not pause_s:
                    self.send(size)
                    continue
                if not self.acknowledgements or self.acknowledgements[0][0] > self.now + pause_s:
                    self.now += pause_s + 1e-9
                    continue
            if more is not None and not more():
                self.window.ran_dry()
            if not self.acknowledgements:
                self.now = end
                break
            when, received = self.acknowledgements.popleft()
            self.now = max(self.now, when)
            self.window.acknowledged(received, self.now)
        return self.window.delivered_bytes - before

    def send(self, size: int, urgent: bool = False) -> None:
        self.window.sent(size, self.now, urgent=urgent)
        begin = max(self.now, self.free_at)
        self.queue_s.append(begin - self.now)
        self.free_at = begin + size / self.rate
        arrival = self.free_at + self.rtt_s
        self.acknowledgements.append((arrival, self.window.sent_bytes))


rates = st.sampled_from([125e3, 625e3, 2.5e6, 12.5e6, 125e6])
round_trips = st.sampled_from([0.0005, 0.02, 0.08, 0.3])


@settings(max_examples=15)
@given(rates, round_trips, st.booleans())
def test_the_path_is_full_and_its_queue_is_short(
    rate: float, rtt_s: float, decode_active: bool
) -> None:
    line = Line(rate, rtt_s)
    line.run(8.0 + 30 * rtt_s, decode_active)
    line.queue_s.clear()
    delivered = line.run(12.0, decode_active)
    assert delivered >= 0.93 * rate * 12.0
    assert line.window.rate_bytes_per_s == pytest.approx(rate, rel=0.1)
    if decode_active:
        fragment = line.window.fragment_bytes(True)
        assert fragment == min(MAX_FRAGMENT_BYTES, max(MIN_FRAGMENT_BYTES, fragment))
        # Beyond what fills the path there are two fragments, and the estimates' error.
        path_s = line.window.min_rtt_s or 0.0
        queue = sorted(line.queue_s)
        assert queue[len(queue) // 2] <= 3 * fragment / rate + 0.15 * path_s
        assert queue[int(0.99 * len(queue))] <= 4 * fragment / rate + 0.3 * path_s


@pytest.mark.parametrize("decode_active", [False, True])
@pytest.mark.parametrize(("rate", "rtt_s"), [(2.5e6, 0.08), (2.5e6, 0.3), (12.5e6, 0.3)])
def test_the_start_doubles_with_each_round_trip(
    rate: float, rtt_s: float, decode_active: bool
) -> None:
    line = Line(rate, rtt_s)
    doublings = math.log2(rate * rtt_s / line.window.window_bytes(decode_active))
    line.run((math.ceil(doublings) + 3) * rtt_s, decode_active)
    assert line.window.rate_bytes_per_s is not None
    assert line.window.rate_bytes_per_s >= 0.95 * rate
    if decode_active:
        # What the path holds, once more, and two fragments.
        assert max(line.queue_s) <= rtt_s + 3 * line.window.fragment_bytes(True) / rate
    line.run(4 * rtt_s, decode_active)
    assert line.run(2.0, decode_active) >= 0.95 * rate * 2.0


def test_the_first_window_of_a_long_path_stands_in_no_queue() -> None:
    line = Line(MIN_RATE_BYTES_PER_S, 0.3)
    line.run(0.3, True)
    assert line.window.sent_bytes >= 0.8 * 0.3 * line.rate
    assert max(line.queue_s) <= 2 * DECODE_INITIAL_WINDOW_BYTES / 4 / line.rate


def test_while_decode_waits_no_round_trip_is_measured_and_its_window_stays() -> None:
    line = Line(2.5e6, 0.02)
    line.run(3.0, True)
    full = line.window.window_bytes(False)
    line.run(0.5, True, lambda: False)
    line.now += RTT_MEMORY_S
    line.window.round_trip(0.05, line.now)
    assert line.window.window_bytes(True) == 0
    line.window.sent(full, line.now, urgent=True)
    assert line.window.may_send_decode()
    line.window.sent(2048, line.now, urgent=False, crowded=True)
    line.window.acknowledged(line.window.sent_bytes, line.now + 0.2)
    assert line.window.min_rtt_s == pytest.approx(0.02, abs=0.01)


@pytest.mark.parametrize(
    ("rate", "idle"),
    [(12.5e6, MAX_FRAGMENT_BYTES), (5e7, MAX_FRAGMENT_BYTES), (4e8, LONG_FRAGMENT_BYTES)],
)
def test_long_fragments_are_for_very_fast_paths_without_decode(rate: float, idle: int) -> None:
    line = Line(rate, 0.0005)
    line.run(1.0, False)
    assert line.window.fragment_bytes(False) == idle
    assert line.window.fragment_bytes(True) <= MAX_FRAGMENT_BYTES
    assert line.run(1.0, False) >= 0.95 * rate


def test_a_slower_path_is_noticed() -> None:
    line = Line(12.5e6, 0.02)
    line.run(3.0, True)
    line.rate = 1.25e6
    line.run(3.0, True)
    assert line.window.rate_bytes_per_s == pytest.approx(1.25e6, rel=0.1)
    line.queue_s.clear()
    line.run(3.0, True)
    assert max(line.queue_s) < 0.05


def test_a_slower_path_is_noticed_although_all_there_is_to_send_fits_the_window() -> None:
    line = Line(25e6, 0.02)
    line.run(2.0, True)
    line.rate = 2.5e6
    end = 0

    def more() -> bool:
        return line.window.sent_bytes < end

    for _ in range(20):  # chunks of a prompt, with pauses between them
        line.queue_s.clear()
        end = line.window.sent_bytes + 128 * 2048
        line.run(0.15, True, more)
    assert line.window.delivered_bytes == line.window.sent_bytes
    assert line.window.rate_bytes_per_s == pytest.approx(line.rate, rel=0.3)
    assert max(line.queue_s) < 0.03


def test_a_faster_path_is_noticed() -> None:
    line = Line(1.25e6, 0.02)
    line.run(3.0, True)
    line.rate = 12.5e6
    line.run(5.0, True)
    assert line.run(3.0, True) > 0.9 * 3.0 * 12.5e6


def test_a_longer_path_is_noticed() -> None:
    line = Line(2.5e6, 0.01)
    line.run(3.0, True)
    line.rtt_s = 0.1
    line.run(30.0, True)
    assert line.window.min_rtt_s == pytest.approx(0.1, abs=0.02)
    assert line.run(5.0, True) > 0.9 * 5.0 * 2.5e6


def test_one_late_look_makes_no_path_longer() -> None:
    """What a look meets once, decode or a busy peer, would fill the queue until the next one."""
    window = LinkWindow()
    window.round_trip(0.02, 0.0, drained=True)
    later = RTT_MEMORY_S + 1.0
    window.round_trip(0.05, later)  # of a fragment behind others: a look is due
    assert window.window_bytes(True) == 0
    window.round_trip(0.035, later + 0.1, drained=True)
    assert (window.min_rtt_s, window.window_bytes(True)) == (0.02, 0)
    window.round_trip(0.0205, later + 0.2, drained=True)
    assert window.min_rtt_s == 0.02
    assert window.window_bytes(True) > 0
    again = later + 0.2 + RTT_MEMORY_S + 1.0
    for number, rtt_s in enumerate((0.06, 0.04, 0.05)):
        assert window.min_rtt_s == 0.02
        window.round_trip(rtt_s, again + 0.1 * number, drained=True)
    assert window.min_rtt_s == 0.04
    assert window.window_bytes(True) > 0


def settled_window(rate: float, rtt_s: float, together: int) -> tuple[LinkWindow, int]:
    """After fragments that a path brings at this rate, and that are answered so many together."""
    window = LinkWindow()
    window.begin_stream(0.0)
    window.round_trip(rtt_s, 0.0, drained=True)
    now, sent = 0.0, 0
    for number in range(int(8.0 * rate / 6000)):
        window.sent(6000, now, urgent=False)
        sent += 6000
        now += 6000 / rate
        if number % together == together - 1:
            # The last of them came at once: its answer took about the least round trip.
            window.acknowledged(sent - int(rate * rtt_s), now)
    return window, window.fragment_bytes(True)


@pytest.mark.parametrize(("together", "more"), [(1, False), (4, False), (15, True)])
def test_only_bursts_that_would_cost_much_of_the_rate_are_kept_in_flight(
    together: int, more: bool
) -> None:
    rate, rtt_s = 1e6, 0.04
    window, fragment = settled_window(rate, rtt_s, together)
    assert window.rate_bytes_per_s is not None
    path = int(window.rate_bytes_per_s * rtt_s)
    assert (window.window_bytes(True) > path + fragment) == more


def test_idle_times_prove_no_limit() -> None:
    line = Line(2.5e6, 0.05)
    line.run(3.0, False)
    rate = line.window.rate_bytes_per_s
    assert rate is not None
    for _ in range(200):
        line.send(4096)
        line.window.ran_dry()
        line.run(0.2, False, lambda: False)
    assert line.window.rate_bytes_per_s == pytest.approx(rate)


def test_a_stall_is_survived() -> None:
    line = Line(2.5e6, 0.05)
    line.run(3.0, True)
    line.free_at += 5.0
    line.run(8.0, True)
    assert line.run(5.0, True) > 0.85 * 5.0 * 2.5e6


def test_decode_passes_a_full_window() -> None:
    window = LinkWindow()
    window.begin_stream(0.0)
    while window.may_send(True):
        window.sent(8192, 0.0, urgent=False)
    initial = DECODE_INITIAL_WINDOW_BYTES
    assert initial <= window.in_flight < initial + 8192
    assert window.may_send_decode()
    while window.may_send_decode():
        window.sent(16_384, 0.0, urgent=True)
    assert window.in_flight < 1 << 20


def test_one_fragment_is_always_under_way() -> None:
    """However small the window: else nothing would come back that could move it."""
    window = LinkWindow()
    window.begin_stream(0.0)
    for _ in range(20):
        window.sent(10_000, 0.0, urgent=True)
    assert window.may_send(True)
    window.sent(8192, 0.0, urgent=False)
    assert not window.may_send(True)
    window.acknowledged(100_000, 0.1)
    assert not window.may_send(True)
    window.acknowledged(window.sent_bytes, 0.2)
    assert window.may_send(True)


def test_a_new_stream_begins_empty_with_what_was_learnt() -> None:
    line = Line(2.5e6, 0.05)
    line.run(3.0, True)
    learnt = (line.window.rate_bytes_per_s, line.window.min_rtt_s)
    line.window.begin_stream(line.now)
    assert line.window.in_flight == 0
    assert (line.window.rate_bytes_per_s, line.window.min_rtt_s) == learnt
    line.window.acknowledged(10**9, line.now)  # of nothing that was sent
    assert line.window.in_flight == 0
