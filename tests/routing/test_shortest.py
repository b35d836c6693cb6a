"""The shortest route, against every possible chain."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_views import BFLOAT16, CHECKPOINT, round_trips, server, swarm, views

from swarm.errors import MissingBlocksError, SwarmError
from swarm.routing.shortest import ShortestRouter, decode_block_s, fixed_cost, one_way_delay
from swarm.routing.view import Numerics, ServerState, SwarmView
from swarm.sessions.messages import MAX_HOPS, Hop


def all_chains(view: SwarmView, reached: int = 0, used: frozenset[str] = frozenset()) -> Iterator:
    """Every chain over all blocks in which each server is one hop, with any cuts."""
    if reached == view.num_blocks:
        yield ()
        return
    for one in view.online():
        if one.peer not in used and reached in one.span:
            for end in range(reached + 1, one.span.end + 1):
                for rest in all_chains(view, end, used | {one.peer}):
                    yield (Hop(one.peer, reached, end), *rest)


def route(view: SwarmView, *, seed: int = 0, near_equal: float = 0.0, **options) -> tuple[Hop, ...]:
    router = ShortestRouter(
        random.Random(seed),
        near_equal=near_equal,
        mix_numerics=options.pop("mix_numerics", False),
    )
    return router.route(view, **{"rtt_s": {}, "tokens_needed": 100, **options})


def cost(view: SwarmView, hops: tuple[Hop, ...], rtt_s: dict) -> float:
    """Seconds per decoded token over `hops`, without the random stretch."""
    servers = {server.peer: server for server in view.servers}
    delays = [one_way_delay(hop.peer, rtt_s) for hop in hops]
    found = delays[0] + sum(map(max, delays, delays[1:])) + delays[-1]
    for hop in hops:
        server = servers[hop.peer]
        found += fixed_cost(server, 100) + decode_block_s(server) * (hop.end - hop.start)
    return found


def is_chain(view: SwarmView, hops: tuple[Hop, ...]) -> bool:
    spans = {one.peer: one.span for one in view.online()}
    ends = [0, *(hop.end for hop in hops)]
    return (
        [hop.start for hop in hops] == ends[:-1]
        and ends[-1] == view.num_blocks
        and all(spans[hop.peer].start <= hop.start < hop.end <= spans[hop.peer].end for hop in hops)
        and len({hop.peer for hop in hops}) == len(hops)
    )


@given(st.data())
def test_no_chain_is_cheaper(data: st.DataObject) -> None:
    view = data.draw(views())
    rtt_s = data.draw(round_trips(view))
    chains = list(all_chains(view))
    if not chains:
        with pytest.raises(MissingBlocksError) as raised:
            route(view, rtt_s=rtt_s)
        assert raised.value.blocks == tuple(map(str, view.missing()))
        return
    hops = route(view, rtt_s=rtt_s)
    assert is_chain(view, hops)
    best = min(cost(view, chain, rtt_s) for chain in chains)
    assert cost(view, hops, rtt_s) == pytest.approx(best)


def test_no_chain_is_cheaper_in_swarms_of_long_spans() -> None:
    """Long spans and unlike servers: chains that would use one server twice, and cuts anywhere."""
    rng = random.Random(5)
    for _ in range(500):
        num_blocks = rng.randint(4, 8)
        servers = []
        for index in range(rng.randint(2, 5)):
            start = rng.choice([0, rng.randrange(0, num_blocks - 1)])
            end = rng.choice([num_blocks, rng.randint(start + 1, num_blocks)])
            speed = rng.choice([0.1, 1, 7, 50, 200])
            servers.append(server(str(index), start, end, decode_ms_per_block=speed))
        view = swarm(num_blocks, *servers)
        rtt_s = {one.peer: rng.choice([0.0, 0.001, 0.03]) for one in servers}
        costs = [cost(view, chain, rtt_s) for chain in all_chains(view)]
        if costs:
            hops = route(view, rtt_s=rtt_s)
            assert is_chain(view, hops)
            assert cost(view, hops, rtt_s) == pytest.approx(min(costs))


@given(st.data(), st.integers(0, 5))
def test_randomness_costs_at_most_its_tolerance(data: st.DataObject, seed: int) -> None:
    view = data.draw(views())
    rtt_s = data.draw(round_trips(view))
    chains = list(all_chains(view))
    if chains:
        hops = route(view, rtt_s=rtt_s, seed=seed, near_equal=0.1)
        assert is_chain(view, hops)
        best = min(cost(view, chain, rtt_s) for chain in chains)
        assert cost(view, hops, rtt_s) <= 1.1 * best + 1e-9


def test_equal_servers_share_the_clients() -> None:
    view = swarm(10, *(server(str(index), 0, 10) for index in range(4)))
    chosen = Counter(route(view, seed=seed, near_equal=0.05)[0].peer for seed in range(400))
    assert len(chosen) == 4
    assert min(chosen.values()) > 50


def test_a_part_of_a_span_is_enough() -> None:
    view = swarm(10, server("slow", 0, 8, decode_ms_per_block=100.0), server("fast", 4, 10))
    assert route(view) == (Hop("server-slow", 0, 4), Hop("server-fast", 4, 10))


def test_no_server_appears_twice_though_that_would_be_cheaper() -> None:
    view = swarm(
        9,
        server("ends", 0, 9, decode_ms_per_block=20.0),
        server("middle", 3, 6, decode_ms_per_block=0.5),
    )
    hops = route(view, rtt_s={one.peer: 0.0 for one in view.servers})
    assert hops == (Hop("server-ends", 0, 9),)


def test_a_waiting_line_and_a_full_cache_send_clients_elsewhere() -> None:
    near, busy = server("near", 0, 4), server("busy", 0, 4, queue_wait_ms=500.0)
    full = server("full", 0, 4, decode_ms_per_block=0.1, cache_tokens_free=50)
    assert route(swarm(4, near, busy, full))[0].peer == near.peer
    assert route(swarm(4, busy, full))[0].peer == busy.peer
    assert route(swarm(4, full))[0].peer == full.peer


def test_a_cache_that_is_busy_is_better_than_one_that_is_too_small() -> None:
    small = server("small", 0, 4, cache_tokens_free=50, cache_tokens_total=50)
    busy = server("busy", 0, 4, cache_tokens_free=0)
    assert route(swarm(4, small, busy))[0].peer == busy.peer


def test_one_chain_has_one_kind_of_numerics() -> None:
    view = swarm(
        8,
        server("a", 0, 4),
        server("b", 4, 8, numerics=BFLOAT16, decode_ms_per_block=0.1),
        server("c", 4, 8, decode_ms_per_block=50.0),
    )
    assert [hop.peer for hop in route(view)] == ["server-a", "server-c"]
    assert [hop.peer for hop in route(view, mix_numerics=True)] == ["server-a", "server-b"]
    without_c = swarm(8, *view.servers[:2])
    with pytest.raises(MissingBlocksError, match=r"float32 on cpu: 4:8 missing.*--mix-numerics"):
        route(without_c)


def test_quantised_weights_are_the_last_resort() -> None:
    whole = server("whole", 0, 8, decode_ms_per_block=50.0)
    small = server("small", 0, 8, numerics=Numerics("float32", "nf4"), decode_ms_per_block=0.1)
    assert route(swarm(8, whole, small))[0].peer == whole.peer
    assert route(swarm(8, small))[0].peer == small.peer
    assert route(swarm(8, whole, small), avoid=[whole.peer])[0].peer == small.peer


def test_only_online_servers_of_the_checkpoint_count() -> None:
    joining = server("joining", 4, 8, state=ServerState.JOINING)
    draining = server("draining", 4, 8, state=ServerState.DRAINING)
    other = replace(server("other", 4, 8), checkpoint="another-checkpoint")
    too_long = server("too-long", 4, 9)
    view = swarm(8, server("a", 0, 4), joining, draining, other, too_long)
    with pytest.raises(MissingBlocksError, match="4:8 is joining, 4:8 is draining") as raised:
        route(view)
    assert raised.value.blocks == ("4:8",)
    assert view.checkpoint == CHECKPOINT


def test_servers_to_avoid_are_not_used() -> None:
    view = swarm(4, server("a", 0, 4, decode_ms_per_block=0.1), server("b", 0, 4))
    assert route(view, avoid={"server-a"})[0].peer == "server-b"
    with pytest.raises(MissingBlocksError, match="2 servers that just failed"):
        route(view, avoid={"server-a", "server-b"})


def test_a_chain_has_at_most_as_many_hops_as_a_grant_holds() -> None:
    blocks = MAX_HOPS + 1
    singles = [server(f"s{block}", block, block + 1) for block in range(blocks)]
    with pytest.raises(SwarmError, match="at most 32"):
        route(swarm(blocks, *singles))
    whole = server("whole", 0, blocks, decode_ms_per_block=1000.0)
    assert route(swarm(blocks, *singles, whole)) == (Hop(whole.peer, 0, blocks),)


def test_a_large_swarm_is_routed_soon() -> None:
    rng = random.Random(1)
    servers = []
    for index in range(300):
        start = rng.randrange(0, 120)
        servers.append(
            server(
                str(index),
                start,
                rng.randint(start + 1, min(126, start + 20)),
                decode_ms_per_block=rng.uniform(1, 10),
            )
        )
    view = swarm(126, *servers, server("first", 0, 8), server("last", 110, 126))
    rtt_s = {one.peer: rng.uniform(0.001, 0.1) for one in view.servers}
    hops = route(view, rtt_s=rtt_s, near_equal=0.05)
    assert is_chain(view, hops)
