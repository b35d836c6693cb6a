"""One request, and every chain that could serve it: what routers are compared with."""

from collections.abc import Iterator

from swarm.routing.network import KnownNetwork
from swarm.routing.router import Route, RouteCosts, RouteRequest, cost_of
from swarm.routing.view import ServerView, SwarmView
from swarm.sessions.messages import Hop
from swarm.spans import PeerId, SessionId

ME = PeerId("client")
REQUEST = RouteRequest(ME, 20, 30)
COSTS = RouteCosts()


def session(number: int) -> SessionId:
    return SessionId(number.to_bytes(16, "big"))


def known(view: SwarmView, rtt_s: dict[PeerId, float]) -> KnownNetwork:
    return KnownNetwork(ME, rtt_s)


def all_chains(
    view: SwarmView, *, to_the_end: bool, reached: int = 0, used: frozenset[str] = frozenset()
) -> Iterator[tuple[Hop, ...]]:
    """Every chain in which each server is one hop; `to_the_end`: of its span."""
    if reached == view.num_blocks:
        yield ()
        return
    for one in view.online():
        if one.peer in used or reached not in one.span:
            continue
        ends = [one.span.end] if to_the_end else range(reached + 1, one.span.end + 1)
        for end in ends:
            more = all_chains(view, to_the_end=to_the_end, reached=end, used=used | {one.peer})
            yield from ((Hop(one.peer, reached, end), *rest) for rest in more)


def servers_of(view: SwarmView, hops: tuple[Hop, ...]) -> list[ServerView]:
    by_peer = {one.peer: one for one in view.servers}
    return [by_peer[PeerId(hop.peer)] for hop in hops]


def request_s(
    view: SwarmView, hops: tuple[Hop, ...], network: KnownNetwork, costs: RouteCosts = COSTS
) -> float:
    cost = cost_of(hops, servers_of(view, hops), network, REQUEST, costs)
    return cost.ttft_s + (REQUEST.output_tokens - 1) * cost.tpot_s


def penalties(view: SwarmView, hops: tuple[Hop, ...]) -> float:
    found = 0.0
    for one in servers_of(view, hops):
        if one.cache_tokens_total < REQUEST.cache_tokens:
            found += 1000.0
        elif one.cache_tokens_free < REQUEST.cache_tokens:
            found += 10.0
    return found


def chain_of(route: Route | None) -> tuple[str, ...]:
    assert route is not None
    return tuple(hop.peer.removeprefix("server-") for hop in route.hops)
