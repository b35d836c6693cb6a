"""Who is an equal, and whether policies spread over equals."""

import pytest
from scenarios import SPEED, chain, traffic

from swarm.routing.performance import ChainMode
from swarm.simulator.scenario import Scenario
from swarm.simulator.simulation import Simulation, simulate
from swarm.spans import PeerId

FOUR = {f"server-{letter}": (0, 8) for letter in "abcd"}


def busy(**options: object) -> Scenario:
    return chain(FOUR, clients=20, traffic=traffic(240, 40.0, output_tokens=4), **options)


@pytest.mark.parametrize("mode", ChainMode)
def test_our_router_spreads_where_petals_takes_one_of_four(mode: ChainMode) -> None:
    scenario = busy(mode=mode)
    ours = simulate(scenario, "two-choices").summary()["busiest_equal"]
    assert 1.0 <= ours <= 1.5
    herding = simulate(scenario, "petals").summary()["busiest_equal"]
    assert herding == pytest.approx(4.0)


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
