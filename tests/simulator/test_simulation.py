"""What simulated swarms do, held to what can be computed by hand."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from scenarios import SPEED, THREE_PAIRS, TWICE, TWO_HALVES, chain, tokens_are_whole, traffic

from swarm.errors import MissingBlocksError, UsageError
from swarm.routing.layout import view_of
from swarm.routing.performance import ChainMode, HopOverhead
from swarm.routing.planned import route_costs
from swarm.routing.policies import ROUTERS, router_named
from swarm.routing.router import RouteRequest
from swarm.scheduling.prefill_chunks import chunk_tokens
from swarm.simulator.scenario import (
    Churn,
    Fault,
    FaultKind,
    HostCores,
    Scenario,
    Timing,
    Traffic,
)
from swarm.simulator.simulation import Simulation, simulate
from swarm.spans import PeerId


@pytest.mark.parametrize("mode", ChainMode)
@pytest.mark.parametrize("bytes_per_s", [None, 1e6])
def test_an_idle_swarm_takes_what_the_cost_model_says(mode, bytes_per_s):
    scenario = chain(TWO_HALVES, mode=mode, bytes_per_s=bytes_per_s)
    (request,) = simulate(scenario, "parallax").requests
    inventory = scenario.inventory
    view = view_of(inventory, scenario.layout, 20, unit=scenario.cache_unit)
    router = router_named("parallax", route_costs(inventory), Random(0))
    asked = RouteRequest(PeerId("client-0"), 20, 16)
    route = router.route(view, inventory.network, asked)
    ttft_s = route.ttft_s
    if mode is ChainMode.RELAY and bytes_per_s is not None:
        # The model lets the last hop return the whole prompt; here it returns what is sampled.
        ttft_s -= 19 * inventory.model.activation_bytes / bytes_per_s
    assert request.first - request.opened == pytest.approx(ttft_s)
    assert request.tpot_s == pytest.approx(route.tpot_s)
    # Opening: one round trip, since every hop is as far away.
    assert request.opened - request.arrived == pytest.approx(0.02)


def test_prompts_are_cut_as_clients_cut_them():
    def first_token(timing):
        scenario = chain(TWO_HALVES, timing=timing, traffic=traffic(prompt_tokens=200))
        return simulate(scenario, "parallax").requests[0].first

    pieces = chunk_tokens(200, len(TWO_HALVES))
    assert pieces < 200
    assert first_token(Timing()) == first_token(Timing(chunk_tokens=pieces))
    assert first_token(Timing()) < first_token(Timing(chunk_tokens=200))


def test_a_prompt_in_pieces_keeps_all_stages_busy():
    timing = Timing(chunk_tokens=10, window=4)
    whole, pieces = (
        simulate(chain(TWO_HALVES, timing=one, traffic=traffic(prompt_tokens=40)), "parallax")
        for one in (Timing(chunk_tokens=40), timing)
    )
    block_s = SPEED.prefill_token_s * 4
    saved = whole.requests[0].first - pieces.requests[0].first
    # The second stage computes 30 of 40 tokens while the first still works; each of the three
    # further pieces costs a pass.
    assert saved == pytest.approx(30 * (block_s + 0.00001) - 3 * SPEED.pass_s, abs=2e-3)
    assert saved > 0.005


def test_sessions_share_passes():
    """Forty sessions decode more tokens a second than one row a pass could."""
    scenario = chain({"server-a": (0, 8)}, clients=40, traffic=traffic(80, at_once=True))
    result = simulate(scenario, "parallax")
    (server,) = result.servers
    assert server.decode_blocks / 8 > 5 * server.passes
    assert result.summary()["tokens_per_s"] > 3 / SPEED.decode_s(8, 1)
    # And no more than the widest pass can.
    assert result.summary()["tokens_per_s"] < 40 / SPEED.decode_s(8, 40)
    tpot_s = [request.tpot_s for request in result.requests]
    assert min(tpot_s) > SPEED.decode_s(8, 10) + 0.02


def test_decoding_does_not_wait_for_strangers_prompts():
    """A prompt of 8,000 tokens computes for seconds; a pass takes 512 of it at most."""
    scenario = chain(
        {"server-a": (0, 8)},
        traffic=Traffic(20.0, 40, 200, 60, spread=1.5),
        timing=Timing(chunk_tokens=256, window=8),
    )
    result = simulate(scenario, "parallax")
    longest_pass = SPEED.decode_s(8, 40) + 8 * 512 * SPEED.prefill_token_s
    assert max(one.prompt_tokens for one in result.requests) > 1000
    assert max(one.longest_gap_s for one in result.requests) < 3 * longest_pass


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_serves_everything(router):
    scenario = chain(TWICE, clients=3, traffic=traffic(60, 20.0, spread=0.5))
    simulation = Simulation(scenario, router)
    result = simulation.run()
    tokens_are_whole(result)
    assert result.summary()["done"] == 60
    # What was reserved has all come back, once the last messages have arrived.
    ended = simulation.world.clock.now + 1.0
    simulation.world.clock.run(lambda: simulation.world.clock.now > ended)
    assert all(server.idle for server in simulation.world.servers.values())


@pytest.mark.parametrize("router", ["two-choices", "petals", "jffc"])
def test_a_seed_says_everything(router):
    def summary(seed):
        scenario = chain(
            THREE_PAIRS,
            clients=3,
            traffic=traffic(30, 10.0, spread=0.7),
            churn=Churn(2.0, 1.0, 0.5, 0.01),
            faults=(Fault(FaultKind.FREEZE, PeerId("server-a"), 1.0, 5.0),),
            liars=0.3,
            seed=seed,
        )
        return simulate(scenario, router).summary()

    assert summary(1) == summary(1)
    assert summary(1) != summary(2)


def test_all_policies_get_the_same_requests():
    scenario = chain(TWICE, clients=3, traffic=traffic(50, 10.0, spread=0.7))
    first, other = (
        [
            (one.client, one.arrived, one.prompt_tokens, one.output_tokens)
            for one in simulate(scenario, router).requests
        ]
        for router in ("petals", "round-robin")
    )
    assert first == other
    mean = sum(one[3] for one in first) / len(first)
    assert mean == pytest.approx(16, rel=0.3)


def test_a_client_that_waits_for_its_answer_has_one_session():
    scenario = chain(TWO_HALVES, clients=2, traffic=traffic(6, at_once=True))
    result = simulate(scenario, "parallax")
    for client in scenario.inventory.clients:
        own = sorted((one.arrived, one.ended) for one in result.requests if one.client == client)
        assert len(own) == 3
        assert all(ended <= after for (_, ended), (after, _) in pairwise(own))


def test_who_finds_no_room_waits_in_line():
    # Room for one session of 36 tokens in the four blocks of each server.
    scenario = chain(TWO_HALVES, memory=4 + 4 * 40, traffic=traffic(5, 100.0))
    result = simulate(scenario, "parallax")
    assert result.summary()["done"] == 5
    spans = sorted((one.opened, one.ended) for one in result.requests)
    for (_, ended), (opened, _) in pairwise(spans):
        assert opened >= ended


def test_who_waits_in_vain_is_told():
    scenario = chain(
        TWO_HALVES,
        memory=4 + 4 * 40,
        traffic=traffic(3, 100.0, output_tokens=20),
        timing=Timing(open_timeout_s=0.3),
    )
    result = simulate(scenario, "parallax")
    assert result.summary()["failures"] == {"CacheFullError": 2}


def test_servers_of_one_host_share_its_cores():
    alone = chain(TWICE, clients=4, traffic=traffic(40, at_once=True))
    host = HostCores(1.0, tuple(map(PeerId, TWICE)))
    shared = replace(alone, hosts=(host,))
    roomy = replace(alone, hosts=(HostCores(40.0, host.machines),))
    slow, quick, same = (
        simulate(one, "round-robin").summary()["response_s"]["mean"]
        for one in (shared, alone, roomy)
    )
    assert slow > 1.3 * quick
    assert same == pytest.approx(quick, rel=1e-3)


def test_a_hops_overhead_is_work_where_cores_are_shared():
    """Alone it takes as long as elsewhere; six at once wait for the cores."""
    host = HostCores(1.0, tuple(map(PeerId, TWO_HALVES)))

    def token_s(clients, hosts):
        scenario = chain(TWO_HALVES, clients=clients, traffic=traffic(clients, at_once=True))
        inventory = replace(scenario.inventory, overhead=HopOverhead(0.02, 0.02))
        found = simulate(replace(scenario, inventory=inventory, hosts=hosts), "petals").summary()
        return found["tpot_s"]["mean"]

    assert token_s(1, (host,)) == pytest.approx(token_s(1, ()))
    assert token_s(6, (host,)) > 2 * token_s(6, ())


def test_opening_takes_its_time_on_both_sides():
    scenario = chain(TWO_HALVES, clients=2, traffic=traffic(2, at_once=True))
    costly = replace(scenario, client_request_s=0.1, hop_open_s=0.03)
    for request in simulate(costly, "petals").requests:
        assert request.opened - request.arrived == pytest.approx(0.1 + 0.02 + 0.03)
    # On one core four openings are computed one beside the other, and two requests before.
    host = HostCores(1.0, (*map(PeerId, TWO_HALVES), *scenario.inventory.clients))
    for request in simulate(replace(costly, hosts=(host,)), "petals").requests:
        assert request.opened - request.arrived == pytest.approx(2 * 0.1 + 0.02 + 4 * 0.03)


def test_clients_that_begin_together_wait_for_each_other():
    asked = traffic(9, at_once=True, together=True, spread=1.0)
    result = simulate(chain(TWO_HALVES, clients=3, traffic=asked), "petals")
    rounds = [result.requests[first : first + 3] for first in (0, 3, 6)]
    for one, following in pairwise(rounds):
        assert {request.arrived for request in following} == {max(r.ended for r in one)}
        assert {request.client for request in following} == {request.client for request in one}


def test_a_prompt_is_computed_in_short_passes_while_others_decode():
    """As `PassPlanner` has it: a tenth of a second at most, half a second when nobody does."""
    speed = replace(SPEED, prefill_token_s=0.0005)
    scenario = chain(
        {"server-a": (0, 8)},
        speeds={"server-a": speed},
        traffic=traffic(2, prompt_tokens=512, output_tokens=120),
        timing=Timing(chunk_tokens=256),
    )
    simulation = Simulation(scenario, "petals")
    decoding, prompt = simulation.requests
    decoding.prompt_tokens, decoding.arrived, prompt.arrived = 1, 0.0, 0.5
    simulation.run()
    assert decoding.ended > prompt.first > 0.5 + 512 * 8 * speed.prefill_token_s
    assert decoding.longest_gap_s < 0.2 < 256 * 8 * speed.prefill_token_s


def test_news_travel_slowly():
    """Clients with an old list try a server that has left."""
    spans = {"server-a": (0, 8), "server-b": (0, 8)}
    drain = Fault(FaultKind.DRAIN, PeerId("server-a"), 1.0)

    def slowest_opening(view_age_s):
        scenario = chain(
            spans,
            speeds={"server-b": replace(SPEED, block_s=0.004)},
            traffic=traffic(40, 4.0),
            timing=Timing(view_age_s=view_age_s),
            faults=(drain,),
        )
        late = [one for one in simulate(scenario, "petals").requests if one.arrived > 3.0]
        return max(one.opened - one.arrived for one in late)

    assert slowest_opening(0.5) == pytest.approx(0.02)
    assert slowest_opening(60.0) > 0.2


def test_liars_are_believed_by_who_goes_by_announcements():
    spans = {f"server-{letter}": (0, 8) for letter in "abcd"}
    scenario = chain(spans, clients=4, traffic=traffic(80, 5.0), liars=0.25)
    result = simulate(scenario, "petals")
    (liar,) = [server for server in result.servers if server.liar]
    assert liar.decode_blocks == sum(server.decode_blocks for server in result.servers)


def test_liars_are_found_out_by_who_measures() -> None:
    spans = {f"server-{letter}": (0, 8) for letter in "abcd"}
    scenario = chain(
        spans, clients=4, traffic=traffic(80, 5.0, output_tokens=48), liars=0.25, lie=8.0
    )
    believed = simulate(scenario, "parallax").summary()
    result = simulate(scenario, "two-choices")
    (liar,) = [server for server in result.servers if server.liar]
    assert liar.decode_blocks < 0.5 * sum(server.decode_blocks for server in result.servers)
    found = result.summary()
    assert found["failed"] == 0
    assert 0 < found["moves"] < 40
    assert believed["moves"] == 0
    assert found["response_s"]["mean"] < 0.5 * believed["response_s"]["mean"]


def test_cached_tokens_lengthen_passes():
    speed = replace(SPEED, context_s=1e-5)
    plain, longer = (
        simulate(chain({"server-a": (0, 8)}, speeds={"server-a": one}), "petals").requests[0].tpot_s
        for one in (SPEED, speed)
    )
    # Fifteen tokens over 20 to 34 cached ones in eight blocks.
    assert longer - plain == pytest.approx(8 * 27 * 1e-5)


def test_a_repair_keeps_the_tokens_and_fills_the_new_hop():
    fault = Fault(FaultKind.KILL, PeerId("server-b"), 0.8)
    spans = {**TWO_HALVES, "server-c": (4, 8)}
    slower = {"server-c": replace(SPEED, block_s=0.004)}
    asked = traffic(prompt_tokens=500, output_tokens=40)
    scenario = chain(spans, speeds=slower, traffic=asked, faults=(fault,))
    simulation = Simulation(scenario, "petals")
    (request,) = simulation.run().requests
    assert (request.repairs, request.hops, request.tokens) == (1, [2, 2], 40)
    # Noticed after 0.2 s, a round trip to open, the cached tokens over four blocks, then one token.
    filling_s = 500 * 4 * SPEED.prefill_token_s
    assert 0.22 + filling_s < request.longest_gap_s < 0.22 + filling_s + 0.12
    # The hop that was not lost did not compute them again.
    kept = simulation.world.servers[PeerId("server-a")]
    assert kept.busy_s < filling_s + 41 * SPEED.decode_s(4)


def test_blocks_that_nobody_serves_are_counted_and_said():
    fault = Fault(FaultKind.KILL, PeerId("server-b"), 1.0, 10.0)
    churn = Churn(load_s_per_block=0.25)
    scenario = chain(
        TWO_HALVES,
        traffic=traffic(30, 2.0),
        faults=(fault,),
        churn=churn,
        timing=Timing(open_timeout_s=2.0, repair_timeout_s=2.0, view_age_s=1.0),
    )
    result = simulate(scenario, "petals")
    assert result.uncovered_s == pytest.approx(10.0 + 4 * 0.25)
    assert (result.leaves, result.joins) == (1, 1)
    summary = result.summary()
    assert 0 < summary["failed"] < 30
    assert summary["covered_share"] == pytest.approx(1 - 11.0 / result.simulated_s)
    tokens_are_whole(result)


def test_under_churn_machines_come_back_where_they_are_needed():
    scenario = chain(
        THREE_PAIRS,
        clients=3,
        traffic=traffic(200, 5.0),
        churn=Churn(median_stay_s=15.0, away_s=2.0, load_s_per_block=0.05),
    )
    result = simulate(scenario, "two-choices")
    summary = result.summary()
    assert summary["leaves"] > 5
    assert summary["joins"] > 3
    assert summary["done"] > 190
    assert summary["covered_share"] > 0.95
    tokens_are_whole(result)


def test_progress_is_told():
    told = []
    simulate(chain(TWO_HALVES, traffic=traffic(5)), "petals", lambda *done: told.append(done))
    assert told == [(number, 5) for number in range(1, 6)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: traffic(0), "at least 1"),
        (lambda: Traffic(0.0, 1, 1, 1), "more than 0"),
        (lambda: traffic(spread=9.0), "spread"),
        (lambda: Fault(FaultKind.SLOW, PeerId("x"), 0.0, factor=0.5), "factor"),
        (lambda: Churn(crash_share=2.0), "crash share"),
        (lambda: Churn(median_stay_s=-1.0), "at least 0"),
        (lambda: Fault(FaultKind.CUT_LINK, PeerId("x"), 0.0), "two ends"),
        (lambda: Fault(FaultKind.CUT_LINK, PeerId("x"), 0.0, other=PeerId("x")), "two ends"),
        (lambda: Fault(FaultKind.KILL, PeerId("x"), 0.0, other=PeerId("y")), "two ends"),
        (lambda: traffic(together=True), "at once"),
        (lambda: chain(TWO_HALVES, hop_open_s=-1.0), "hop_open_s"),
        (lambda: chain(TWO_HALVES, liars=1.5), "share"),
        (
            lambda: chain(TWO_HALVES, faults=(Fault(FaultKind.KILL, PeerId("nobody"), 0.0),)),
            "nobody",
        ),
        (
            lambda: chain(TWO_HALVES, hosts=(HostCores(1, (PeerId("server-a"),)),) * 2),
            "one host only",
        ),
        (lambda: simulate(chain(TWO_HALVES), "magic"), "two-choices"),
    ],
)
def test_mistakes_are_said(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def test_a_layout_with_a_hole_is_no_scenario():
    with pytest.raises(MissingBlocksError, match="4:8"):
        scenario = chain(TWO_HALVES)
        spans = {PeerId("server-a"): scenario.layout.spans[PeerId("server-a")]}
        Scenario(scenario.inventory, replace(scenario.layout, spans=spans), traffic())
