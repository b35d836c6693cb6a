"""A swarm as the papers simulate it: no tokens, only caches that are booked and given back.

One event is a request that comes or a session that ends; the routers and placements are those of
the product. How long a session holds its cache is what its chain is predicted to take, stretched by
its own number of tokens; routers see the expected ends.
"""

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from swarm.routing.hop_graph import waits
from swarm.routing.inventory import Inventory, Workload
from swarm.routing.layout import Layout, view_of
from swarm.routing.router import Route, Router, RouteRequest
from swarm.routing.routers.waiting import Rounding, at_once
from swarm.routing.view import Release, SwarmView
from swarm.sessions.messages import Hop
from swarm.spans import PeerId, SessionId


@dataclass(frozen=True)
class Arrival:
    """One request."""

    at_s: float
    output_tokens: int
    """That it really generates."""


@dataclass(frozen=True)
class Outcome:
    """What became of it."""

    wait_s: float
    service_s: float
    """With the setup."""

    @property
    def response_s(self) -> float:
        return self.wait_s + self.service_s


@dataclass
class _Booking:
    route: Route
    expected_end_s: float
    end_s: float


class Booking:
    """Runs requests through one layout with one router."""

    def __init__(
        self,
        inventory: Inventory,
        layout: Layout,
        workload: Workload,
        router: Router,
        *,
        setup_s: float = 0.0,
        rounding: Rounding = at_once,
        cache_tokens: Mapping[PeerId, int] | None = None,
        ask_again: bool = False,
    ) -> None:
        """`setup_s`: added to each request, and its cache is held for it; `rounding`: from the
        time at which there is room to the start; `cache_tokens`: where a server's cache is not
        all the memory beside its blocks; `ask_again`: nothing is booked ahead, who finds no room
        routes anew after 1, 2, 4 ... 60 s, as Petals' clients do."""
        self._inventory = inventory
        self._workload = workload
        self._router = router
        self._setup_s = setup_s
        self._rounding = rounding
        self._ask_again = ask_again
        self._view = view_of(inventory, layout, workload.prompt_tokens)
        given = cache_tokens or {}
        self._total = {
            server.peer: min(server.cache_tokens_total, given.get(server.peer, 1 << 62))
            for server in self._view.servers
        }
        self._active: dict[SessionId, _Booking] = {}
        self._names = count()

    def run(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """In the order of the arrivals; those who wait in a router's line go first come first
        served."""
        outcomes: dict[int, Outcome] = {}
        events: list[tuple[float, int, int, SessionId | None]] = []
        tries: dict[int, int] = {}
        order = count()
        for number, arrival in enumerate(arrivals):
            heapq.heappush(events, (arrival.at_s, next(order), number, None))
        line: deque[int] = deque()
        while events:
            now, _, number, ended = heapq.heappop(events)
            if ended is None and self._ask_again:
                arrival = arrivals[number]
                started = self._start(arrival, now)
                if started is None:
                    tries[number] = tries.get(number, -1) + 1
                    again = now + min(60.0, 2.0 ** tries[number])
                    heapq.heappush(events, (again, next(order), number, None))
                else:
                    session, outcomes[number] = started
                    heapq.heappush(events, (self._active[session].end_s, next(order), -1, session))
                continue
            if ended is None:
                line.append(number)
            else:
                self._router.closed(ended)
                self._active.pop(ended, None)
            while line:
                started = self._start(arrivals[line[0]], now)
                if started is None:
                    break
                session, outcome = started
                outcomes[line.popleft()] = outcome
                heapq.heappush(events, (self._active[session].end_s, next(order), -1, session))
        return [outcomes[number] for number in range(len(arrivals))]

    def _start(self, arrival: Arrival, now: float) -> tuple[SessionId, Outcome] | None:
        workload = self._workload
        request = RouteRequest(
            self._inventory.clients[0], workload.prompt_tokens, workload.output_tokens
        )
        view = self._seen(now, lambda booking: booking.expected_end_s)
        route = self._router.route(view, self._inventory.network, request)
        if route is None:
            return None
        truth = self._seen(now, lambda booking: booking.end_s)
        wait_s = self._rounding(self._wait_s(truth, route.hops, workload.session_tokens))
        if self._ask_again and wait_s > 0:
            return None
        expected_s = route.ttft_s + (workload.output_tokens - 1) * route.tpot_s + self._setup_s
        service_s = route.ttft_s + (arrival.output_tokens - 1) * route.tpot_s + self._setup_s
        session = SessionId(next(self._names).to_bytes(16, "big"))
        begins = now + wait_s
        self._active[session] = _Booking(route, begins + expected_s, begins + service_s)
        self._router.opened(session, route)
        return session, Outcome(begins - arrival.at_s, service_s)

    def _seen(self, now: float, end: Callable[[_Booking], float]) -> SwarmView:
        taken: dict[str, list[Release]] = {}
        for booking in self._active.values():
            after = max(0.0, end(booking) - now)
            for hop in booking.route.hops:
                tokens = (hop.end - hop.start) * self._workload.session_tokens
                taken.setdefault(hop.peer, []).append(Release(after, tokens))
        servers = []
        for server in self._view.servers:
            releases = tuple(taken.get(server.peer, ()))
            total = self._total[server.peer]
            free = total - sum(one.tokens for one in releases)
            servers.append(
                replace(
                    server,
                    cache_tokens_total=total,
                    cache_tokens_free=free,
                    releases=releases,
                )
            )
        return replace(self._view, servers=tuple(servers))

    @staticmethod
    def _wait_s(view: SwarmView, hops: Sequence[Hop], tokens: int) -> float:
        servers = {server.peer: server for server in view.servers}
        used = [(servers[PeerId(hop.peer)], hop.end - hop.start) for hop in hops]
        table = waits(
            [server.cache_tokens_free for server, _ in used],
            [[(one.after_s, one.tokens) for one in server.releases] for server, _ in used],
            [[blocks * tokens] for _, blocks in used],
        )
        return float(table.max())
