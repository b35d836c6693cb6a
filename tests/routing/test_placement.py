"""Which blocks a server takes by itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_views import server, swarm, views

from swarm.errors import BadSpanError
from swarm.routing.placement import block_rates, least_covered
from swarm.routing.view import ServerState, SwarmView
from swarm.spans import Span


def test_an_empty_swarm_is_begun_at_the_first_block() -> None:
    assert least_covered(swarm(30), 30, 10) == Span(0, 10)
    assert least_covered(swarm(30), 30, 99) == Span(0, 30)


def test_a_gap_is_filled_first() -> None:
    view = swarm(30, server("a", 0, 10), server("b", 20, 30))
    assert least_covered(view, 30, 10) == Span(10, 20)


def test_a_joining_server_counts_and_an_offline_one_does_not() -> None:
    joining = server("joining", 0, 10, state=ServerState.JOINING, decode_ms_per_block=0.0)
    assert least_covered(swarm(20, joining), 20, 10) == Span(10, 20)
    draining = server("draining", 0, 10, state=ServerState.DRAINING)
    assert least_covered(swarm(20, draining), 20, 10) == Span(0, 10)


def test_the_slowest_cover_is_helped_first() -> None:
    view = swarm(
        20,
        server("fast", 0, 10, decode_ms_per_block=1.0),
        server("slow", 10, 20, decode_ms_per_block=20.0),
    )
    assert least_covered(view, 20, 10) == Span(10, 20)


@given(views(max_blocks=12, max_servers=6), st.integers(1, 14))
def test_no_other_start_is_weaker(view: SwarmView, size: int) -> None:
    span = least_covered(view, view.num_blocks, size)
    assert len(span) == min(size, view.num_blocks)
    rates = block_rates(view)
    chosen = sorted(rates[span.start : span.end])
    for start in range(view.num_blocks - len(span) + 1):
        other = sorted(rates[start : start + len(span)])
        assert chosen < other or (chosen == other and span.start <= start)


@given(st.integers(1, 40), st.integers(1, 10))
def test_servers_that_join_one_after_another_cover_the_model(blocks: int, size: int) -> None:
    view = swarm(blocks)
    for index in range(-(-blocks // size) * 2):
        if not view.missing():
            break
        span = least_covered(view, blocks, size)
        view = swarm(blocks, *view.servers, server(str(index), span.start, span.end))
    assert not view.missing()


def test_nothing_to_place_is_an_error() -> None:
    with pytest.raises(BadSpanError):
        least_covered(swarm(4), 4, 0)
