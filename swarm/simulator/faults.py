"""What goes wrong."""

from collections.abc import Callable

from swarm.simulator.comings import Comings
from swarm.simulator.scenario import Fault, FaultKind
from swarm.simulator.server import SimulatedServer
from swarm.simulator.world import World

NEW_DAEMON_S = 1.0
"""At least so long a server has no daemon after its own was killed."""
SLOW_LINK_S = 30.0
"""As long as in `scripts/faults.py`."""


class Faults:
    """Makes the scenario's faults happen. A machine that is away just then is spared."""

    def __init__(self, world: World, comings: Comings) -> None:
        self._world = world
        self._clock = world.clock
        self._comings = comings
        self.happened = 0
        for fault in world.scenario.faults:
            self._clock.at(fault.at_s, self._happen, fault)

    def _happen(self, fault: Fault) -> None:
        server = self._world.servers.get(fault.machine)
        if server is None or server.gone:
            return
        self.happened += 1
        match fault.kind:
            case FaultKind.KILL:
                self._comings.crash(server, fault.lasts_s)
            case FaultKind.CRASH_AT_STEP:
                server.at_next_pass = lambda: self._crash(server, fault.lasts_s)
            case FaultKind.DRAIN:
                self._comings.drain(server, fault.lasts_s)
            case FaultKind.SLOW:
                server.slowed *= fault.factor
                self._later(fault, self._quick_again, server, fault.factor)
            case FaultKind.REFUSE:
                server.refuses = True
                self._later(fault, setattr, server, "refuses", False)
            case FaultKind.WRONG_OUTPUT:
                server.wrong = True
                self._later(fault, setattr, server, "wrong", False)
            case FaultKind.CUT_LINK | FaultKind.SLOW_LINK:
                self._bad_link(fault)
            case _:
                self._cut_off(server, fault)

    def _later(self, fault: Fault, action: Callable[..., None], *arguments: object) -> None:
        """When the fault is over, if it ever is."""
        if fault.lasts_s:
            self._clock.after(fault.lasts_s, action, *arguments)

    def _crash(self, server: SimulatedServer, away_s: float) -> None:
        if not server.gone:
            self._comings.crash(server, away_s)

    def _quick_again(self, server: SimulatedServer, factor: float) -> None:
        server.slowed /= factor

    def _bad_link(self, fault: Fault) -> None:
        assert fault.other is not None
        added_s = SLOW_LINK_S if fault.kind is FaultKind.SLOW_LINK else None
        self._world.links.spoil(fault.machine, fault.other, added_s)
        self._later(fault, self._world.links.mend, fault.machine, fault.other)

    def _cut_off(self, server: SimulatedServer, fault: Fault) -> None:
        broken = fault.kind is FaultKind.KILL_DAEMON
        server.cut_off(
            frozen=fault.kind not in (FaultKind.FREEZE_DAEMON, FaultKind.KILL_DAEMON),
            broken=broken,
            announced=fault.kind is FaultKind.STALE_RECORD,
        )
        for session in self._world.sessions_over(server.peer):
            self._world.watch(session, server)
        lasts_s = max(fault.lasts_s, NEW_DAEMON_S) if broken else fault.lasts_s
        if lasts_s:
            self._clock.after(lasts_s, self._reach_again, server)
        self._world.coverage_changed()

    def _reach_again(self, server: SimulatedServer) -> None:
        server.reach_again()
        self._world.announce(server)
        self._world.coverage_changed()
