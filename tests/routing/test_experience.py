"""What a client learns of servers from the times of its own chains."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from routing_views import server, swarm

from swarm.routing.experience import Experience, Share
from swarm.routing.network import KnownNetwork
from swarm.routing.router import RouteCosts, RouteRequest
from swarm.routing.routers.layers import TwoChoicesRouter
from swarm.routing.view import SwarmView
from swarm.spans import PeerId, SessionId

ME = PeerId("client")
HONEST = [server(name, 0, 4) for name in ("a", "b", "c", "d")]


def test_nothing_is_believed_before_something_was_measured() -> None:
    view = swarm(4, *HONEST)
    experience = Experience()
    assert experience.seen(view) is view
    assert experience.factor(HONEST[0]) == 1.0


def test_the_slow_one_is_found_among_chains_of_two() -> None:
    experience = Experience()
    rng = random.Random(3)
    slow = HONEST[2]
    for _ in range(30):
        pair = rng.sample(HONEST, 2)
        taken = sum(0.04 if one is slow else 0.01 for one in pair)
        experience.observed([Share(one, 0.01) for one in pair], taken * rng.uniform(0.95, 1.05))
    assert experience.factor(slow) == pytest.approx(4.0, rel=0.15)
    for one in HONEST:
        if one is not slow:
            assert experience.factor(one) == pytest.approx(1.0, abs=0.3)


def test_who_has_kept_its_word_is_not_blamed_for_a_stranger() -> None:
    experience = Experience()
    known, stranger = HONEST[:2]
    for _ in range(10):
        experience.observed([Share(known, 0.01)], 0.01)
    experience.observed([Share(known, 0.01), Share(stranger, 0.01)], 0.05)
    assert experience.factor(known) < 1.2
    assert experience.factor(stranger) > 2.5


def test_a_new_announcement_does_not_wash_a_liar_clean() -> None:
    experience = Experience()
    liar = HONEST[0]
    for _ in range(10):
        experience.observed([Share(liar, 0.01)], 0.04)
    bolder = replace(liar, decode_ms_per_block=liar.decode_ms_per_block / 2)
    seen = experience.seen(swarm(4, bolder)).servers[0]
    honest = experience.seen(swarm(4, liar)).servers[0]
    assert seen.decode_ms_per_block == pytest.approx(honest.decode_ms_per_block)


def test_snapshots_keep_the_objects_of_which_nothing_new_is_known() -> None:
    view = swarm(4, *HONEST)
    experience = Experience()
    experience.observed([Share(HONEST[0], 0.01)], 0.03)
    first, second = experience.seen(view), experience.seen(view)
    assert all(one is other for one, other in zip(first.servers, second.servers, strict=True))
    assert first.servers[1] is HONEST[1]
    assert first.servers[0].prefill_tokens_per_s < HONEST[0].prefill_tokens_per_s


def test_who_announces_no_speed_is_learnt_like_others() -> None:
    """Silence counts as ten milliseconds a block, and is no way to stay fast."""
    silent = replace(server("a", 0, 4), decode_ms_per_block=0.0)
    view = swarm(4, silent, server("b", 0, 4, decode_ms_per_block=15.0))
    router = TwoChoicesRouter(RouteCosts(), random.Random(0))
    network = KnownNetwork(ME, {one.peer: 0.002 for one in view.servers})
    request = RouteRequest(ME, 20, 100)
    for number in range(4):
        session = SessionId(number.to_bytes(16, "big"))
        route = router.route(view, network, request)
        router.opened(session, route)
        late_s = 4 * 0.03 if route.hops[0].peer == "server-a" else 0.0
        router.measured(session, route.tpot_s + late_s)
        router.closed(session)
    assert router.route(view, network, request).hops[0].peer == "server-b"
    experience = Experience()
    for _ in range(10):
        experience.observed([Share(silent, 0.04)], 0.16)
    said = replace(silent, decode_ms_per_block=5.0)
    for one in (silent, said):
        (seen,) = experience.seen(swarm(4, one)).servers
        assert seen.decode_ms_per_block == pytest.approx(40.0, rel=0.05)


def asked(router: TwoChoicesRouter, view: SwarmView, slowness: float, times: int) -> Counter[str]:
    """Who is taken for so many sessions when all but server `a` keep their word; `a` takes
    `slowness` times as long."""
    network = KnownNetwork(ME, {one.peer: 0.002 for one in view.servers})
    request = RouteRequest(ME, 20, 100)
    taken: Counter[str] = Counter()
    for number in range(times):
        session = SessionId(number.to_bytes(16, "big"))
        route = router.route(view, network, request)
        router.opened(session, route)
        (hop,) = route.hops
        taken[hop.peer] += 1
        late_s = (slowness - 1) * 0.004 if hop.peer == "server-a" else 0.0
        router.measured(session, route.tpot_s + late_s)
        router.closed(session)
    return taken


def test_an_equal_is_not_left_for_good_after_one_slow_session() -> None:
    view = swarm(4, server("a", 0, 4), server("b", 0, 4))
    for seed in range(5):
        router = TwoChoicesRouter(RouteCosts(), random.Random(seed))
        taken: Counter[str] = Counter()
        while not taken["server-a"]:
            taken += asked(router, view, 1.35, 1)
        later = asked(router, view, 1.0, 60)
        assert 18 <= later["server-a"] <= 42, later


def test_who_is_slower_again_and_again_is_left() -> None:
    view = swarm(4, server("a", 0, 4), server("b", 0, 4))
    router = TwoChoicesRouter(RouteCosts(), random.Random(1))
    assert asked(router, view, 1.6, 60)["server-a"] < 12


@pytest.mark.parametrize("fresh", [False, True])
def test_only_a_load_of_this_moment_is_a_reason_among_equals(fresh: bool) -> None:
    network = KnownNetwork(ME, {PeerId(f"server-{name}"): 0.05 for name in "ab"})
    request = RouteRequest(ME, 20, 100)
    for wait_ms, taken_of in ((1.0, (0, 0) if fresh else (70, 130)), (60.0, (0, 0))):
        view = swarm(4, server("a", 0, 4, queue_wait_ms=wait_ms), server("b", 0, 4))
        router = TwoChoicesRouter(RouteCosts(), random.Random(2), fresh_loads=fresh)
        routes = [router.route(view, network, request) for _ in range(200)]
        taken = sum(route.hops[0].peer == "server-a" for route in routes)
        assert taken_of[0] <= taken <= taken_of[1]


def test_a_router_leaves_a_liar_alone_once_it_has_tried_it() -> None:
    liar = replace(server("liar", 0, 4), decode_ms_per_block=1.0)
    honest = replace(server("honest", 0, 4), decode_ms_per_block=2.0)
    view = swarm(4, liar, honest)
    network = KnownNetwork(ME, {liar.peer: 0.002, honest.peer: 0.002})
    router = TwoChoicesRouter(RouteCosts(), random.Random(0))
    request = RouteRequest(ME, 20, 100)
    first = router.route(view, network, request)
    assert [hop.peer for hop in first.hops] == [liar.peer]
    session = SessionId(bytes(16))
    router.opened(session, first)
    tpot_s = first.tpot_s + 3 * 0.004
    router.measured(session, tpot_s)
    better = router.much_better(tpot_s, view, network, replace(request, output_tokens=80))
    assert better is not None
    assert [hop.peer for hop in better.hops] == [honest.peer]
    # Moving costs a prompt; it is not worth it for the last few tokens.
    assert router.much_better(tpot_s, view, network, RouteRequest(ME, 100, 2)) is None
    router.closed(session)
    assert [hop.peer for hop in router.route(view, network, request).hops] == [honest.peer]
