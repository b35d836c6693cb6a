"""A client on the virtual clock: what it believes of the swarm, and its router."""

from bisect import insort
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from swarm.client.troubles import Troubles
from swarm.errors import SwarmError
from swarm.routing.router import Route, Router, RouteRequest
from swarm.routing.view import SwarmView
from swarm.simulator.requests import Request
from swarm.simulator.scenario import Timing
from swarm.simulator.session import SimulatedSession
from swarm.spans import PeerId, SessionId

if TYPE_CHECKING:
    from swarm.simulator.world import World


class SimulatedClient:
    """Its list of servers is looked up every `view_age_s` and is stale in between."""

    def __init__(self, world: "World", peer: PeerId, router: Router, rng: Random) -> None:
        self.world = world
        self.peer = peer
        self.timing: Timing = world.scenario.timing
        self._router = router
        self._rng = rng
        self._view: SwarmView = world.directory.snapshot()
        self._troubles = Troubles()
        self._line: list[SimulatedSession] = []
        """Those for which a router that queues had no chain free, in the order of their coming."""
        world.clock.after(rng.random() * self.timing.view_age_s, self._look_up)

    def begin(self, request: Request) -> None:
        """A request has arrived."""
        session = SimulatedSession(self, request, SessionId(self._rng.randbytes(16)))
        self.world.sessions[session.id] = session
        work_s = self.world.scenario.client_request_s
        if work_s:
            self.world.cores_of(self.peer).start(work_s, partial(self._ask, session))
        else:
            self._ask(session)

    def _ask(self, session: SimulatedSession) -> None:
        """For a route; nobody overtakes those in line."""
        if self._line:
            self.wait_in_line(session)
        else:
            session.find_route()

    def route(self, session: SimulatedSession, question: RouteRequest) -> Route | None:
        """The router's answer; from then on the session counts as running over it.

        Raises MissingBlocksError, or SwarmError for a chain that is too long.
        """
        route = self._router.route(self._view, self.world.scenario.inventory.network, question)
        if route is not None:
            self._router.opened(session.id, route)
        return route

    def measured(
        self, session: SimulatedSession, tpot_s: float, question: RouteRequest
    ) -> Route | None:
        """The session's tokens take so long. A route that it should move to, if there is one; then
        it counts as running over that."""
        self._router.measured(session.id, tpot_s)
        network = self.world.scenario.inventory.network
        try:
            route = self._router.much_better(tpot_s, self._view, network, question)
        except SwarmError:
            return None
        if route is not None:
            self._router.closed(session.id)
            self._router.opened(session.id, route)
        return route

    def closed(self, session: SimulatedSession) -> None:
        """It does not run over its route any more; those in line ask again."""
        self._router.closed(session.id)
        if self._line:
            self.world.clock.after(0.0, self._line.pop(0).find_route)

    def ended(self, session: SimulatedSession) -> None:
        """Its request has."""
        del self.world.sessions[session.id]
        self.closed(session)
        self.world.ended(session.request)

    def wait_in_line(self, session: SimulatedSession) -> None:
        """Until another session of this client has closed."""
        insort(self._line, session, key=lambda one: one.request.number)

    def failed(self, peer: PeerId) -> None:
        """A server is left out for a while."""
        self._troubles.failed(peer, self.world.clock.now)

    def served(self, peer: PeerId) -> None:
        """A session has opened at a server: what it failed before is forgiven."""
        self._troubles.served(peer)

    def left_out(self) -> set[PeerId]:
        """The servers that failed lately."""
        return self._troubles.left_out(self.world.clock.now)

    def look_up(self) -> None:
        """The servers anew."""
        self._view = self.world.directory.snapshot()

    def _look_up(self) -> None:
        self.look_up()
        self.world.clock.after(self.timing.view_age_s, self._look_up)
