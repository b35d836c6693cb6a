"""One scenario under one policy, from the first request to the last."""

from collections.abc import Callable
from random import Random

from swarm.routing.planned import route_costs
from swarm.routing.policies import router_named
from swarm.simulator.client import SimulatedClient
from swarm.simulator.comings import Comings
from swarm.simulator.faults import Faults
from swarm.simulator.requests import Request
from swarm.simulator.results import Result, load_of
from swarm.simulator.scenario import Scenario, Traffic
from swarm.simulator.world import World
from swarm.spans import PeerId

Progress = Callable[[int, int], None]
"""Told how many requests have ended, and of how many."""

_NEED_RELEASES = frozenset({"ws-rr", "threshold"})
"""Routers that go by when sessions will end."""


class Simulation:
    """Serves the scenario's requests with one router in every client."""

    def __init__(
        self, scenario: Scenario, router: str, on_progress: Progress | None = None
    ) -> None:
        """Raises UsageError for a router that nobody knows."""
        self.scenario = scenario
        self.requests = _requests(scenario)
        self.world = World(scenario, self._ended, announce_releases=router in _NEED_RELEASES)
        self.comings = Comings(self.world)
        self.faults = Faults(self.world, self.comings)
        self._router = router
        self._on_progress = on_progress
        self._to_come = iter(self.requests)
        self._done = 0
        self._running = 0
        """Requests of clients that send at once which have begun and not ended."""
        costs = route_costs(scenario.inventory)
        self._clients = {
            peer: SimulatedClient(
                self.world,
                peer,
                router_named(router, costs, Random(f"router {scenario.seed} {peer}")),
                Random(f"client {scenario.seed} {peer}"),
            )
            for peer in scenario.inventory.clients
        }

    def run(self) -> Result:
        """Until every request has ended; once."""
        world, clock = self.world, self.world.clock
        if self.scenario.traffic.at_once:
            self._begin_round()
        else:
            for request in self.requests:
                clock.at(request.arrived, self._clients[request.client].begin, request)
        clock.run(lambda: self._done >= len(self.requests))
        world.coverage_changed()
        return Result(
            router=self._router,
            seed=self.scenario.seed,
            requests=tuple(self.requests),
            servers=tuple(
                load_of(
                    server,
                    clock.now,
                    liar=server.peer in world.liars,
                    relayed=self.scenario.inventory.machine(server.peer).relayed,
                )
                for server in world.every_server
            ),
            simulated_s=clock.now,
            events=clock.events,
            uncovered_s=world.uncovered_s,
            busiest_equal=world.equal_shares.busiest(),
            busiest_alike=world.equal_shares.busiest_alike(),
            joins=self.comings.joins,
            leaves=self.comings.leaves,
            faults=self.faults.happened,
        )

    def _ended(self, request: Request) -> None:
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(self._done, len(self.requests))
        traffic = self.scenario.traffic
        if not traffic.at_once:
            return
        self._running -= 1
        if not traffic.together:
            self._begin_next(request.client)
        elif not self._running:
            self._begin_round()

    def _begin_round(self) -> None:
        for peer in self._clients:
            self._begin_next(peer)

    def _begin_next(self, client: PeerId) -> None:
        request = next(self._to_come, None)
        if request is not None:
            self._running += 1
            request.client, request.arrived = client, self.world.clock.now
            self.world.clock.after(0.0, self._clients[client].begin, request)


def simulate(scenario: Scenario, router: str, on_progress: Progress | None = None) -> Result:
    """Run it. The same scenario (with its seed) and router give the same result.

    Raises UsageError for a router that nobody knows.
    """
    return Simulation(scenario, router, on_progress).run()


def _requests(scenario: Scenario) -> list[Request]:
    """Their lengths and times do not depend on the policy, so that policies can be compared."""
    traffic, clients = scenario.traffic, scenario.inventory.clients
    rng = Random(f"requests {scenario.seed}")
    now = 0.0
    requests: list[Request] = []
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
