"""Who is an equal, and whether policies spread over equals."""

from dataclasses import replace

import pytest
from scenarios import SPEED, chain, traffic

from swarm.routing.performance import ChainMode
from swarm.simulator.scenario import Scenario
from swarm.simulator.simulation import Simulation, simulate
from swarm.simulator.steps import Stage
from swarm.spans import PeerId

FOUR = {f"server-{letter}": (0, 8) for letter in "abcd"}


def busy(**options: object) -> Scenario:
    return chain(FOUR, clients=20, traffic=traffic(240, 40.0, output_tokens=4), **options)


@pytest.mark.parametrize("mode", ChainMode)
def test_our_router_spreads_where_petals_takes_one_of_four(mode: ChainMode) -> None:
    scenario = busy(mode=mode)
    ours = simulate(scenario, "two-choices").summary()
    assert 1.0 <= ours["busiest_equal"] <= 1.5
    assert 1.0 <= ours["busiest_alike"] <= 1.5
    herding = simulate(scenario, "petals").summary()
    assert herding["busiest_equal"] == pytest.approx(4.0)
    assert herding["busiest_alike"] == pytest.approx(4.0)


def test_herding_on_one_that_is_not_the_best_is_seen_among_its_like() -> None:
    """All four are alike and one is a little nearer; whoever goes by the third of them herds."""
    scenario = busy()
    matrix = scenario.inventory.network.matrix_s  # type: ignore[attr-defined]
    matrix[0, :] = matrix[:, 0] = 0.009
    simulation = Simulation(scenario, "petals")
    shares = simulation.world.equal_shares
    took = simulation.world.took

    def elsewhere(client: PeerId, stages: list[Stage], chosen: list[int]) -> None:
        third = simulation.world.servers[PeerId("server-c")]
        took(client, [replace(stages[0], server=third)], chosen)

    simulation.world.took = elsewhere  # type: ignore[method-assign, assignment]
    simulation.run()
    assert shares.busiest() is None
    assert shares.busiest_alike() == pytest.approx(4.0)


def test_who_is_slower_farther_or_a_liar_is_no_equal() -> None:
    slow = {"server-d": type(SPEED)(pass_s=0.001, block_s=0.004)}
    scenario = busy(speeds=slow, liars=0.25, lie=1.0)
    simulation = Simulation(scenario, "two-choices")
    (liar,) = simulation.world.liars
    far = next(name for name in FOUR if name not in (liar, "server-d"))
    matrix = scenario.inventory.network.matrix_s  # type: ignore[attr-defined]
    number = list(FOUR).index(far)
    matrix[number, :] = matrix[:, number] = 0.1
    simulation.run()
    shares = simulation.world.equal_shares.shares()
    assert not {PeerId("server-d"), liar, PeerId(far)} & set(shares)
    assert sum(due for _, due in shares.values()) == sum(taken for taken, _ in shares.values())


def test_a_few_sessions_say_nothing() -> None:
    summary = simulate(chain(FOUR, traffic=traffic(30, 5.0)), "petals").summary()
    assert summary["busiest_equal"] is None
    one = simulate(chain({"server-a": (0, 8)}, traffic=traffic(60, 20.0)), "petals").summary()
    assert one["busiest_equal"] is None
