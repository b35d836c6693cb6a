"""One scenario under one policy, from the first request to the last."""

from collections.abc import Callable
from random import Random

from swarm.routing.planned import route_costs
from swarm.routing.policies import router_named
from swarm.simulator.client import SimulatedClient
from swarm.simulator.comings import Comings
from swarm.simulator.requests import Request
from swarm.simulator.results import Result, load_of
from swarm.simulator.scenario import Scenario, Traffic
from swarm.simulator.world import World
from swarm.spans import PeerId

Progress = Callable[[int, int], None]
"""Told how many requests have ended, and of how many."""

_NEED_RELEASES = frozenset({"ws-rr", "threshold"})
"""Routers that go by when sessions will end."""


def simulate(scenario: Scenario, router: str, on_progress: Progress | None = None) -> Result:
    """Run it. The same scenario (with its seed) and router give the same result.

    Raises UsageError for a router that nobody knows, MissingBlocksError if the layout leaves blocks
    without a server.
    """
    ended = 0
    requests = _requests(scenario)
    arrivals = iter(requests)

    def on_ended(request: Request) -> None:
        nonlocal ended
        ended += 1
        if on_progress is not None:
            on_progress(ended, len(requests))
        if scenario.traffic.at_once:
            begin_next(request.client)

    world = World(scenario, on_ended, announce_releases=router in _NEED_RELEASES)
    costs = route_costs(scenario.inventory)
    clients = {
        peer: SimulatedClient(
            world,
            peer,
            router_named(router, costs, Random(f"router {scenario.seed} {peer}")),
            Random(f"client {scenario.seed} {peer}"),
        )
        for peer in scenario.inventory.clients
    }

    def begin_next(client: PeerId) -> None:
        request = next(arrivals, None)
        if request is not None:
            request.client, request.arrived = client, world.clock.now
            world.clock.after(0.0, clients[client].begin, request)

    if scenario.traffic.at_once:
        for peer in clients:
            begin_next(peer)
    else:
        for request in requests:
            world.clock.at(request.arrived, clients[request.client].begin, request)
    comings = Comings(world)
    world.clock.run(lambda: ended >= len(requests))
    world.coverage_changed()
    now = world.clock.now
    return Result(
        router=router,
        seed=scenario.seed,
        requests=tuple(requests),
        servers=tuple(
            load_of(server, now, server.peer in world.liars) for server in world.every_server
        ),
        simulated_s=now,
        events=world.clock.events,
        uncovered_s=world.uncovered_s,
        joins=comings.joins,
        leaves=comings.leaves,
        faults=comings.faults,
    )


def _requests(scenario: Scenario) -> list[Request]:
    """Their lengths and times do not depend on the policy, so that policies can be compared."""
    traffic, clients = scenario.traffic, scenario.inventory.clients
    rng = Random(f"requests {scenario.seed}")
    now, requests = 0.0, []
    for number in range(traffic.requests):
        prompt = _length(traffic.prompt_tokens, traffic, rng)
        output = _length(traffic.output_tokens, traffic, rng)
        client = rng.choice(clients)
        requests.append(Request(number, client, now, prompt, output))
        if not traffic.at_once:
            now += rng.expovariate(traffic.rate_per_s)
    return requests


def _length(mean: int, traffic: Traffic, rng: Random) -> int:
    """Log-normal with this mean, at least 1, at most eight times the mean."""
    if not traffic.spread:
        return mean
    factor = rng.lognormvariate(-(traffic.spread**2) / 2, traffic.spread)
    return max(1, min(8 * mean, round(mean * factor)))
