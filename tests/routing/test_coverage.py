"""Which blocks a server takes by itself."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_views import BFLOAT16, FLOAT32, server, swarm, views

from swarm.errors import BadSpanError
from swarm.routing.coverage import (
    best_span,
    block_rates,
    holders,
    place_server,
    rate_of,
    usual_ms,
    weakness_s,
)
from swarm.routing.shifting import fewest_moves
from swarm.routing.view import ServerState, SwarmView
from swarm.spans import PeerId, Span


def place(view: SwarmView, size: int, ms: float = 1.0) -> Span:
    return place_server(view, size, ms, FLOAT32)


def test_an_empty_swarm_is_begun_at_the_first_block() -> None:
    assert place(swarm(30), 10) == Span(0, 10)
    assert place(swarm(30), 99) == Span(0, 30)


def test_a_gap_is_filled_first() -> None:
    view = swarm(30, server("a", 0, 10), server("b", 20, 30))
    assert place(view, 10) == Span(10, 20)
    assert place(view, 12) in (Span(8, 20), Span(9, 21), Span(10, 22))


def test_who_will_hold_blocks_counts_and_who_leaves_does_not() -> None:
    joining = server("joining", 0, 10, state=ServerState.JOINING, decode_ms_per_block=0.0)
    assert place(swarm(20, joining), 10) == Span(10, 20)
    draining = server("draining", 0, 10, state=ServerState.DRAINING)
    assert place(swarm(20, draining), 10) == Span(0, 10)
    moving = server("moving", 0, 10, moving_to=Span(10, 20))
    assert place(swarm(20, moving), 10) == Span(0, 10)
    assert place(swarm(20, replace(moving, state=ServerState.DRAINING)), 10) == Span(0, 10)


def test_the_slowest_cover_is_helped_first() -> None:
    slow = server("slow", 10, 20, decode_ms_per_block=6.0)
    assert place(swarm(20, server("fast", 0, 10), slow), 10) == Span(10, 20)


def test_a_server_that_serves_more_blocks_serves_each_of_them_less() -> None:
    view = swarm(20, server("small", 0, 5), server("large", 5, 20))
    assert place(view, 5).start >= 5


def test_nobody_is_believed_to_be_much_faster_than_the_others() -> None:
    view = swarm(
        20,
        server("liar", 0, 10, decode_ms_per_block=1e-6),
        *(server(str(n), 10, 20) for n in range(9)),
    )
    assert place(view, 10) == Span(0, 10)


def test_servers_that_compute_alike_are_covered_first() -> None:
    view = swarm(20, server("a", 0, 10), server("b", 0, 20, numerics=BFLOAT16))
    assert place(view, 10) == Span(10, 20)
    alone = swarm(20, server("b", 0, 10, numerics=BFLOAT16))
    assert place(alone, 10) == Span(10, 20), "others may mix numerics"


@given(views(max_blocks=12, max_servers=6), st.integers(1, 14), st.sampled_from([0.0, 1.0, 30.0]))
def test_no_other_start_leaves_the_swarm_less_weak(view: SwarmView, size: int, ms: float) -> None:
    size = min(size, view.num_blocks)
    rates = block_rates(holders(view), view.num_blocks)
    rate = rate_of(ms, size, usual_ms(view))

    def key(start: int) -> tuple[int, float]:
        after = rates.copy()
        after[start : start + size] += rate
        held = after[after > 0]
        return int((after == 0).sum()), float(((1 / held) ** 2).sum())

    chosen = key(best_span(rates, size, rate).start)
    best = min(key(start) for start in range(view.num_blocks - size + 1))
    assert chosen[0] == best[0]
    assert chosen[1] == pytest.approx(best[1], rel=1e-6)


@given(st.integers(1, 40), st.integers(1, 10))
def test_servers_that_join_one_after_another_cover_the_model(blocks: int, size: int) -> None:
    view = swarm(blocks)
    for index in range(-(-blocks // size)):
        span = place(view, size)
        view = swarm(blocks, *view.servers, server(str(index), span.start, span.end))
    assert not view.missing()


def test_rates_are_summed_exactly_where_nobody_is() -> None:
    view = swarm(10, *(server(str(n), 2, 4, decode_ms_per_block=0.1 * (n + 1)) for n in range(9)))
    rates = block_rates(holders(view), 10)
    assert np.count_nonzero(rates) == 2
    assert weakness_s(rates) > 1e5


def test_the_server_itself_is_left_out() -> None:
    view = swarm(20, server("me", 0, 10), server("other", 10, 20))
    assert place_server(view, 10, 1.0, FLOAT32, (PeerId("server-me"),)) == Span(0, 10)


def test_nothing_to_place_is_an_error() -> None:
    with pytest.raises(BadSpanError):
        place(swarm(4), 0)


@given(views(max_blocks=12, max_servers=6), st.integers(1, 12), st.randoms(use_true_random=False))
def test_the_order_of_records_decides_nothing(view: SwarmView, size: int, rng: Random) -> None:
    shuffled = list(view.servers)
    rng.shuffle(shuffled)
    other = swarm(view.num_blocks, *shuffled)
    assert place(view, size) == place(other, size)
    movable = {one.peer for one in view.servers}
    assert fewest_moves(holders(view), movable, view.num_blocks) == fewest_moves(
        holders(other), movable, view.num_blocks
    )
