"""Figures from what happened."""

import pytest

from swarm.simulator.requests import Outcome, Request
from swarm.simulator.results import Result, ServerLoad, Spread, busiest_replica
from swarm.spans import PeerId, Span


def load(name, decoded, *, span=(0, 4), present_s=10.0, block_s=0.002, liar=False, relayed=False):
    server = PeerId(name)
    return ServerLoad(server, Span(*span), 0.5, 1, decoded, present_s, block_s, liar, relayed)


def test_the_busiest_replica_is_compared_with_its_equals():
    assert busiest_replica([load("a", 30), load("b", 10)]) == pytest.approx(1.5)
    assert busiest_replica([load("a", 30), load("b", 10, span=(4, 8))]) is None
    assert busiest_replica([load("a", 30), load("b", 10, block_s=0.001)]) is None
    assert busiest_replica([load("a", 30), load("b", 10, liar=True)]) is None
    assert busiest_replica([load("a", 30), load("b", 10, relayed=True)]) is None
    assert busiest_replica([load("a", 0), load("b", 0)]) is None
    # Half the work in half the time is the same rate; who was there for a moment does not count.
    assert busiest_replica([load("a", 30), load("b", 15, present_s=5.0)]) == pytest.approx(1.0)
    assert busiest_replica([load("a", 30), load("b", 10, present_s=0.5)]) is None


def test_spreads_leave_out_what_is_not_there():
    assert Spread.of([None, 1.0, 3.0]) == Spread(2.0, 2.0, pytest.approx(2.98))
    assert Spread.of([None]) == Spread(None, None, None)


def test_a_summary_counts_what_is_done_and_what_failed():
    done = Request(0, PeerId("c"), 1.0, 20, 3)
    done.opened, done.first, done.ended, done.tokens = 1.5, 2.0, 4.0, 3
    done.outcome, done.hops = Outcome.DONE, [2]
    failed = Request(1, PeerId("c"), 1.0, 20, 3)
    failed.ended, failed.outcome, failed.failure = 5.0, Outcome.FAILED, "CacheFullError"
    summary = Result("r", 0, (done, failed), (), 5.0, 9, 1.0, 1.2, 1.3, 0, 0, 0).summary()
    assert (summary["done"], summary["failed"]) == (1, 1)
    assert summary["failures"] == {"CacheFullError": 1}
    assert summary["ttft_s"]["mean"] == 1.0
    assert summary["tpot_s"]["mean"] == 1.0
    assert summary["response_s"]["mean"] == 3.0
    assert summary["tokens_per_s"] == pytest.approx(0.6)
    assert summary["covered_share"] == pytest.approx(0.8)
    assert summary["busiest_replica"] is None
