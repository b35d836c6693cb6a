"""What all routers have in common: the question, the answer, and what a hop costs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from swarm.routing.network import Network
from swarm.routing.performance import ChainMode, HopOverhead
from swarm.routing.view import ServerView, SwarmView
from swarm.sessions.messages import Hop
from swarm.spans import PeerId, SessionId

DEFAULT_DECODE_MS_PER_BLOCK = 10.0
"""Of a server that has not measured itself yet."""
ROW_SHARE = 0.2
"""Of the time of a pass with one row, added by each further one (eight rows packed were computed
3.5 times as fast as one after another)."""


@dataclass(frozen=True)
class RouteRequest:
    """What a client wants a chain for."""

    client: PeerId
    prompt_tokens: int
    output_tokens: int
    """Expected; a route is the best one for prompt and output together."""
    reserve_tokens: int = 0
    """Cache to reserve, rows x length; 0: prompt and output."""
    avoid: frozenset[PeerId] = frozenset()
    """Servers that just failed."""

    @property
    def cache_tokens(self) -> int:
        """What each hop must have room for, in every block that it serves."""
        return self.reserve_tokens or self.prompt_tokens + self.output_tokens


@dataclass(frozen=True)
class Route:
    """A chain, and what it is predicted to take."""

    hops: tuple[Hop, ...]
    wait_s: float
    """Until every hop has room."""
    ttft_s: float
    """From then until the first token."""
    tpot_s: float

    def request_s(self, output_tokens: int) -> float:
        """The whole request with its wait."""
        return self.wait_s + self.ttft_s + (output_tokens - 1) * self.tpot_s


@dataclass(frozen=True)
class RouteCosts:
    """How a client reckons; one object for all routers that are compared."""

    mode: ChainMode = ChainMode.PUSH
    overhead: HopOverhead = field(default_factory=HopOverhead)
    activation_bytes: float = 0.0
    """Of one token on the wire."""
    mix_numerics: bool = False
    """Whether one chain may have servers that compute differently."""


class Router(Protocol):
    """Chooses the chain of a session. One object for each client: it may remember."""

    def route(self, view: SwarmView, network: Network, request: RouteRequest) -> Route | None:
        """The chain; None: the session waits until another of this router's sessions has closed
        (only routers that queue say so), then ask again.

        Raises MissingBlocksError when no chain covers all blocks, and CacheFullError when none
        will ever have room for the session (of routers that look at caches).
        """
        ...

    def opened(self, session: SessionId, route: Route) -> None:
        """The session runs over `route` now."""
        ...

    def measured(self, session: SessionId, tpot_s: float) -> None:
        """So long the session's tokens really took over its route, on average; before `closed`."""
        ...

    def much_better(
        self, tpot_s: float, view: SwarmView, network: Network, request: RouteRequest
    ) -> Route | None:
        """A route that is worth moving a session to whose tokens now take `tpot_s`; None: stay.

        `request`: what the new hops would have to compute (as `prompt_tokens`), and what is still
        to come.
        """
        ...

    def closed(self, session: SessionId) -> None:
        """The session has ended, or could not be opened; unknown ones are no error."""
        ...


class Trusting:
    """A router that believes what servers announce."""

    def measured(self, session: SessionId, tpot_s: float) -> None:
        """Nothing is learned."""

    def much_better(
        self, tpot_s: float, view: SwarmView, network: Network, request: RouteRequest
    ) -> Route | None:
        """None: the route that was announced to be the best one is."""
        return None


class Forgetful(Trusting):
    """A router that remembers no sessions."""

    def opened(self, session: SessionId, route: Route) -> None:
        """Nothing to remember."""

    def closed(self, session: SessionId) -> None:
        """Nothing to remember."""


# ---- what a hop costs


def decode_block_s(server: ServerView) -> float:
    """Seconds that one token takes in one block of `server`."""
    return (server.decode_ms_per_block or DEFAULT_DECODE_MS_PER_BLOCK) / 1000


def row_block_s(server: ServerView) -> float:
    """By which a further row lengthens one block of a decode pass."""
    if server.decode_row_ms_per_block > 0:
        return server.decode_row_ms_per_block / 1e3
    return ROW_SHARE * decode_block_s(server)


def decode_fixed_s(server: ServerView) -> float:
    """Of one token at a server, however many blocks it passes there: wait and pass."""
    return (server.queue_wait_ms + server.decode_fixed_ms) / 1e3


def prefill_block_s(server: ServerView, prompt_tokens: int) -> float:
    """Of a whole prompt in one block; as slow as decoding while no prompt was measured."""
    if server.prefill_tokens_per_s > 0:
        return prompt_tokens / (server.prefill_tokens_per_s * len(server.span))
    return prompt_tokens * decode_block_s(server)


@dataclass(frozen=True)
class ChainCost:
    """The parts of a chain's cost, in seconds."""

    ttft_s: float
    tpot_s: float


def cost_of(
    hops: Sequence[Hop],
    servers: Sequence[ServerView],
    network: Network,
    request: RouteRequest,
    costs: RouteCosts,
) -> ChainCost:
    """What a chain costs by the router's reckoning; the reference that all routers are held to.

    Each hop: delay + bytes / bandwidth + overhead + queue wait + time of the blocks *used*.
    """
    prompt = request.prompt_tokens
    ttft = tpot = 0.0
    before = request.client
    for hop, server in zip(hops, servers, strict=True):
        token_s = costs.activation_bytes * max(
            network.seconds_per_byte(before), network.seconds_per_byte(server.peer)
        )
        trips = 1
        delay_s = network.one_way_s(before, server.peer)
        if costs.mode is ChainMode.RELAY:
            trips, delay_s = 2, 2 * network.one_way_s(request.client, server.peer)
        else:
            before = server.peer
        used = hop.end - hop.start
        fixed_s = delay_s + decode_fixed_s(server)
        tpot += fixed_s + trips * token_s + costs.overhead.decode_s + used * decode_block_s(server)
        ttft += fixed_s + trips * prompt * token_s + used * prefill_block_s(server, prompt)
        ttft += costs.overhead.prefill_s + costs.overhead.prefill_token_s * prompt
    if costs.mode is ChainMode.PUSH:
        back_s = network.one_way_s(before, request.client)
        back_s += costs.activation_bytes * max(
            network.seconds_per_byte(before), network.seconds_per_byte(request.client)
        )
        ttft, tpot = ttft + back_s, tpot + back_s
    return ChainCost(ttft, tpot)


def request_weights(request: RouteRequest) -> tuple[int, int]:
    """How many decode steps follow the first token, and how many tokens go over each way."""
    steps = max(0, request.output_tokens - 1)
    return steps, request.prompt_tokens + steps
