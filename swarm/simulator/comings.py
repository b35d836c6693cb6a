"""Who comes and who goes."""

import math
from random import Random

from swarm.routing.coverage import place_server
from swarm.routing.view import ServerState
from swarm.simulator.server import SimulatedServer
from swarm.simulator.world import World
from swarm.spans import PeerId

DRAIN_S = 30.0
"""How long a server that leaves waits for its sessions to be moved."""
_LOOK_S = 1.0


class Comings:
    """Makes the scenario's churn happen."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._clock = world.clock
        self._churn = world.scenario.churn
        self._rng = Random(f"churn {world.scenario.seed}")
        self.joins = 0
        self.leaves = 0
        if self._churn.median_stay_s:
            for peer in world.scenario.layout.spans:
                self._plan_leave(peer)

    def _plan_leave(self, peer: PeerId) -> None:
        mean_s = self._churn.median_stay_s / math.log(2)
        server = self._world.servers[peer]
        self._clock.after(self._rng.expovariate(1 / mean_s), self._leave, server)

    def _leave(self, server: SimulatedServer) -> None:
        if server.gone or server.state is not ServerState.ONLINE:
            return
        away_s = self._rng.expovariate(1 / self._churn.away_s) if self._churn.away_s else 0.0
        if self._rng.random() < self._churn.crash_share:
            self.crash(server, away_s, again=True)
        else:
            self.drain(server, away_s, again=True)

    def _come(self, server: SimulatedServer, again: bool) -> None:
        """The machine is back: it takes as many blocks as before, where the swarm is weakest."""
        world = self._world
        self.joins += 1
        view, own = world.directory.snapshot(), server.announced(releases=False)
        span = place_server(
            view, len(server.span), own.decode_ms_per_block, own.numerics, (server.peer,)
        )
        new = world.start_server(server.peer, span, ServerState.JOINING)
        loading_s = self._churn.load_s_per_block * len(span)
        self._clock.after(loading_s, self._loaded, new, again)

    def _loaded(self, server: SimulatedServer, again: bool) -> None:
        if server.gone:
            return
        server.state = ServerState.ONLINE
        self._world.announce(server)
        self._world.coverage_changed()
        if again:
            self._plan_leave(server.peer)

    def crash(self, server: SimulatedServer, away_s: float, again: bool = False) -> None:
        """It vanishes, and is back after `away_s` (0: never). `again`: it comes and goes as long as
        the simulation lasts."""
        self.leaves += 1
        self._vanish(server, away_s, again)

    def _vanish(self, server: SimulatedServer, away_s: float, again: bool) -> None:
        sessions = self._world.sessions_over(server.peer)
        server.vanish()
        self._world.coverage_changed()
        for session in sessions:
            self._world.watch(session, server)
        if away_s or again:
            self._clock.after(away_s, self._come, server, again)

    def drain(self, server: SimulatedServer, away_s: float, again: bool = False) -> None:
        """It leaves when its sessions have gone elsewhere; the rest as in `crash`."""
        self.leaves += 1
        server.state = ServerState.DRAINING
        self._world.announce(server)
        for session in self._world.sessions_over(server.peer):
            self._clock.after(0.0, session.lost, server.peer)
        self._drained(server, self._clock.now + DRAIN_S, away_s, again)

    def _drained(
        self, server: SimulatedServer, deadline: float, away_s: float, again: bool
    ) -> None:
        if server.gone:
            return
        if not server.idle and self._clock.now < deadline:
            self._clock.after(_LOOK_S, self._drained, server, deadline, away_s, again)
            return
        self._world.directory.withdraw(server.peer)
        self._vanish(server, away_s, again)
