"""All placements and routers by name: for planners, the simulator and users who compare them."""

import random
from collections.abc import Callable, Mapping
from typing import TypeVar

from swarm.errors import UsageError
from swarm.routing.layout import Placement
from swarm.routing.placements.best import BestPlacement
from swarm.routing.placements.chains import ChainsPlacement
from swarm.routing.placements.conservative import ConservativePlacement
from swarm.routing.placements.optimum import OptimalPlacement
from swarm.routing.placements.parallax import ParallaxPlacement
from swarm.routing.placements.petals import PetalsPlacement
from swarm.routing.router import RouteCosts, Router
from swarm.routing.routers.layers import LayerRouter, TwoChoicesRouter
from swarm.routing.routers.petals import PetalsRouter
from swarm.routing.routers.pipelines import FastestFreeChainRouter, RoundRobinRouter
from swarm.routing.routers.waiting import ThresholdRouter, WaitingTimeRouter

Policy = TypeVar("Policy")

_PLACEMENTS: Mapping[str, Callable[[random.Random], Placement]] = {
    "petals": PetalsPlacement,
    "cg-bp": lambda rng: ConservativePlacement(),
    "gbp-cr": lambda rng: ChainsPlacement(),
    "parallax": lambda rng: ParallaxPlacement(),
    "best": lambda rng: BestPlacement(),
    "optimum-products": lambda rng: OptimalPlacement(BestPlacement(), products=True),
    "optimum": lambda rng: OptimalPlacement(BestPlacement()),
}
_ROUTERS: Mapping[str, Callable[[RouteCosts, random.Random], Router]] = {
    "petals": lambda costs, rng: PetalsRouter(costs),
    "ws-rr": lambda costs, rng: WaitingTimeRouter(costs),
    "threshold": lambda costs, rng: ThresholdRouter(costs),
    "parallax": lambda costs, rng: LayerRouter(costs),
    "jffc": lambda costs, rng: FastestFreeChainRouter(costs),
    "round-robin": lambda costs, rng: RoundRobinRouter(costs),
    "two-choices": TwoChoicesRouter,
}
PLACEMENTS = tuple(_PLACEMENTS)
"""Their names."""
ROUTERS = tuple(_ROUTERS)


def placement_named(name: str, rng: random.Random) -> Placement:
    """`rng`: for those that draw (the order in which servers join). UsageError with all names."""
    return _named(_PLACEMENTS, "placement", name)(rng)


def router_named(name: str, costs: RouteCosts, rng: random.Random) -> Router:
    """A new router for one client. Raises UsageError with all names."""
    return _named(_ROUTERS, "router", name)(costs, rng)


def _named(table: Mapping[str, Policy], what: str, name: str) -> Policy:
    if name not in table:
        raise UsageError(f"no {what} is called {name!r}; take one of {', '.join(table)}")
    return table[name]
