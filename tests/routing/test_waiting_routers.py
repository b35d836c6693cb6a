"""Routers that wait for room in caches: against all chains, with servers that are busy."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from possible_chains import COSTS, REQUEST, all_chains, known, request_s, servers_of
from routing_views import round_trips, views

from swarm.errors import SwarmError
from swarm.routing.hop_graph import waits
from swarm.routing.routers.waiting import ThresholdRouter, WaitingTimeRouter, petals_retries
from swarm.routing.view import CacheUnit, Release, ServerView, SwarmView
from swarm.sessions.messages import Hop


def wait_s(view: SwarmView, hop: Hop, one: ServerView) -> float:
    """Sessions end one after the other until there is room."""
    needed = view.cache_needed(one, REQUEST.cache_tokens, hop.end - hop.start)
    free = one.cache_tokens_free
    if free >= needed:
        return 0.0
    for release in sorted(one.releases, key=lambda release: release.after_s):
        free += release.tokens
        if free >= needed:
            return release.after_s
    return math.inf


@st.composite
def busy_views(draw: st.DrawFn) -> SwarmView:
    """Servers whose caches are taken, and come back at various times."""
    view = draw(views())
    releases = st.lists(
        st.builds(
            Release,
            st.sampled_from([0.5, 2.0, 7.0, 40.0]),
            st.sampled_from([20, 60, 200]),
        ),
        max_size=4,
    )
    busy = [
        replace(
            one,
            cache_tokens_free=draw(st.sampled_from([0, 60, 1000])),
            releases=tuple(draw(releases)),
        )
        for one in view.servers
    ]
    return replace(view, servers=tuple(busy), cache_unit=draw(st.sampled_from(CacheUnit)))


@settings(max_examples=150)
@given(st.data())
def test_the_waiting_routers_against_all_chains(data: st.DataObject) -> None:
    view = data.draw(busy_views())
    network = known(view, data.draw(round_trips(view)))
    rounding = data.draw(st.sampled_from([petals_retries, lambda waited: waited]))
    summed: list[float] = []
    longest: list[float] = []
    for hops in all_chains(view, to_the_end=True):
        each = [
            wait_s(view, hop, one) for hop, one in zip(hops, servers_of(view, hops), strict=True)
        ]
        if max(each) < math.inf:
            cost = request_s(view, hops, network)
            summed.append(sum(each) + cost)
            longest.append(rounding(max(each)) + cost)
    ws_rr, exact = WaitingTimeRouter(COSTS, rounding), ThresholdRouter(COSTS, rounding)
    if not summed:
        for router in (ws_rr, exact):
            with pytest.raises(SwarmError):
                router.route(view, network, REQUEST)
        return
    route = exact.route(view, network, REQUEST)
    assert route.request_s(REQUEST.output_tokens) == pytest.approx(min(longest))
    other = ws_rr.route(view, network, REQUEST)
    each = [
        wait_s(view, hop, one)
        for hop, one in zip(other.hops, servers_of(view, other.hops), strict=True)
    ]
    assert other.wait_s == rounding(max(each))
    assert sum(each) + request_s(view, other.hops, network) == pytest.approx(min(summed))
    # The sum is an upper bound of what really comes (Corollary 1).
    assert max(each) + request_s(view, other.hops, network) <= min(summed) + 1e-9


@pytest.mark.parametrize(
    ("waited", "started"),
    [(0, 0), (0.1, 1), (1, 1), (1.5, 3), (3, 3), (6, 7), (16, 31), (60, 63), (64, 123), (124, 183)],
)
def test_petals_clients_ask_again_ever_more_rarely(waited: float, started: float) -> None:
    assert petals_retries(waited) == started


def test_waits_are_of_the_sessions_that_end_first() -> None:
    table = waits([3], [[(9.0, 2), (4.0, 1)]], [[0, 2, 4, 6, 8]])
    assert table.tolist() == [[0.0, 0.0, 4.0, 9.0, math.inf]]
