"""Everything that is true in a simulation: servers, ways between peers, sessions, coverage."""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from swarm.routing.layout import PLANNED_CHECKPOINT, server_view
from swarm.routing.performance import ChainMode
from swarm.routing.router import Route
from swarm.routing.view import ServerState
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.prefill_chunks import MAX_TOKENS
from swarm.simulator.bad_links import BadLinks
from swarm.simulator.clock import Clock
from swarm.simulator.directory import SimulatedDirectory
from swarm.simulator.equals import EqualShares
from swarm.simulator.host import Cores, OwnCores, SharedCores
from swarm.simulator.requests import Request
from swarm.simulator.scenario import Scenario
from swarm.simulator.server import Call, SimulatedServer
from swarm.simulator.session import SimulatedSession
from swarm.simulator.steps import Stage, Step
from swarm.spans import PeerId, SessionId, Span

ANNOUNCE_JITTER = 0.1


class World:
    """The truth; clients know of it what the directory says."""

    def __init__(
        self,
        scenario: Scenario,
        on_ended: Callable[[Request], None],
        *,
        announce_releases: bool,
    ) -> None:
        self.scenario = scenario
        self.clock = Clock()
        self.checkpoint = PLANNED_CHECKPOINT
        self.ended = on_ended
        self.servers: dict[PeerId, SimulatedServer] = {}
        self.every_server: list[SimulatedServer] = []
        """Also those that have gone."""
        self.sessions: dict[SessionId, SimulatedSession] = {}
        self.equal_shares = EqualShares(scenario.inventory)
        self.uncovered_s = 0.0
        """How long some block had no server that could be reached."""
        blocks = scenario.layout.num_blocks
        unit = scenario.cache_unit
        self.directory = SimulatedDirectory(self.clock, self.checkpoint, blocks, unit)
        self._rng = Random(f"world {scenario.seed}")
        self._announce_releases = announce_releases
        self._own = OwnCores(self.clock)
        self._cores: dict[PeerId, Cores] = {}
        for host in scenario.hosts:
            shared = SharedCores(self.clock, host.cores)
            self._cores.update(dict.fromkeys(host.machines, shared))
        peers = sorted(scenario.layout.spans)
        lying = round(scenario.liars * len(peers))
        self.liars = frozenset(Random(f"liars {scenario.seed}").sample(peers, lying))
        self.links = BadLinks(self)
        self._overhead = scenario.inventory.overhead
        self._uplink_free_s: dict[str, float] = {}
        self._delays: dict[tuple[PeerId, PeerId], float] = {}
        self._covered_since = 0.0
        self._covered = False
        for peer, span in scenario.layout.spans.items():
            self.start_server(peer, span)

    # ---- servers

    def start_server(
        self, peer: PeerId, span: Span, state: ServerState = ServerState.ONLINE
    ) -> SimulatedServer:
        """A machine hosts `span` from now on, and says so."""
        scenario = self.scenario
        inventory = scenario.inventory
        traffic = scenario.traffic
        view = server_view(
            inventory,
            peer,
            span,
            min(traffic.prompt_tokens, scenario.timing.chunk_tokens or MAX_TOKENS),
            checkpoint=self.checkpoint,
            unit=scenario.cache_unit,
            state=state,
        )
        server = SimulatedServer(
            self.clock,
            view,
            inventory.machine(peer).speed,
            self.cores_of(peer),
            pass_tokens=scenario.timing.pass_tokens,
            lie=scenario.lie if peer in self.liars else 1.0,
        )
        self.servers[peer] = server
        self.every_server.append(server)
        self._announce(server)
        self.coverage_changed()
        return server

    def cores_of(self, peer: PeerId) -> Cores:
        """On which a peer computes."""
        return self._cores.get(peer, self._own)

    def announce(self, server: SimulatedServer) -> None:
        """Say now what has changed, beside the usual times."""
        if (not server.unreachable or server.still_announced) and not server.gone:
            self.directory.announce(server.announced(releases=self._announce_releases))

    def _announce(self, server: SimulatedServer) -> None:
        if server.gone:
            return
        self.announce(server)
        jitter = 1 + ANNOUNCE_JITTER * (2 * self._rng.random() - 1)
        self.clock.after(self.scenario.timing.announce_s * jitter, self._announce, server)

    def coverage_changed(self) -> None:
        """Count how long blocks are without a server."""
        now = self.clock.now
        if not self._covered:
            self.uncovered_s += now - self._covered_since
        reached = 0
        spans = sorted(
            server.span
            for server in self.servers.values()
            if server.state in (ServerState.ONLINE, ServerState.DRAINING)
            and not server.unreachable
            and not server.gone
        )
        for span in spans:
            if span.start <= reached:
                reached = max(reached, span.end)
        self._covered = reached >= self.scenario.layout.num_blocks
        self._covered_since = now

    def sessions_over(self, peer: PeerId) -> list[SimulatedSession]:
        """The sessions whose route has this server."""
        return [one for one in self.sessions.values() if peer in one.peers]

    def took(self, client: PeerId, stages: Sequence[Stage], chosen: Sequence[int]) -> None:
        """A session runs over `stages`; `chosen`: those that are new to it."""
        able = [
            server
            for server in self.servers.values()
            if server.state is ServerState.ONLINE
            and not server.unreachable
            and not server.gone
            and server.peer not in self.liars
        ]
        self.equal_shares.took(client, stages, chosen, able)

    # ---- ways

    def delay_s(self, sender: PeerId, receiver: PeerId) -> float:
        """One way."""
        key = (sender, receiver)
        found = self._delays.get(key)
        if found is None:
            found = self.scenario.inventory.network.one_way_s(sender, receiver)
            self._delays[key] = found
        return found

    def stages(self, client: PeerId, route: Route) -> tuple[list[Stage], float]:
        """The hops of a route with the ways to them, and the way back of one token, in seconds."""
        inventory = self.scenario.inventory
        network, token_bytes = inventory.network, inventory.model.activation_bytes
        relay = inventory.mode is ChainMode.RELAY
        stages: list[Stage] = []
        before = client
        for hop in route.hops:
            peer = PeerId(hop.peer)
            legs = [(before, peer)]
            if relay and before != client:
                legs = [(before, client), (client, peer)]
            delay_s = sum(self.delay_s(*leg) for leg in legs)
            byte_s = sum(max(map(network.seconds_per_byte, leg)) for leg in legs)
            decode_s = delay_s + token_bytes * byte_s + inventory.overhead.decode_s
            stage = Stage(
                self.servers[peer], hop, hop.end - hop.start, before, delay_s, byte_s, decode_s
            )
            stages.append(stage)
            before = peer
        back_byte_s = max(network.seconds_per_byte(before), network.seconds_per_byte(client))
        return stages, self.delay_s(before, client) + token_bytes * back_byte_s

    def carry(self, step: Step) -> None:
        """Bring a step to the stage that it is to go to next.

        A decoded token does not wait behind prompts, whose bytes go one after the other over the
        sender's line (`swarm.wire` sends fragments of the better class first). A hop's overhead is
        processor time where its host's cores are shared, and only time elsewhere.
        """
        stage = step.stages[step.at]
        clock, server = self.clock, stage.server
        if step.service_class is ServiceClass.DECODE:
            fixed_s = self._overhead.decode_s
            arrives = clock.now + stage.decode_s
        else:
            fixed_s = self._overhead.prefill_s + self._overhead.prefill_token_s * step.tokens
            sending_s = step.tokens * self.scenario.inventory.model.activation_bytes * stage.byte_s
            free = max(clock.now, self._uplink_free_s.get(stage.sender, 0.0)) + sending_s
            self._uplink_free_s[stage.sender] = free
            arrives = free + stage.delay_s + fixed_s
        if self.links.takes(step, arrives):
            return
        if server.cores.shared:
            clock.at(arrives - fixed_s, server.cores.start, fixed_s, partial(server.receive, step))
        else:
            clock.at(arrives, server.receive, step)
        if server.gone or server.unreachable:
            self.watch(step.session, server)

    def ask(self, server: SimulatedServer, call: Call) -> None:
        """`Open` travels to a server, which has something to compute for it."""
        arrives = self.clock.now + call.delay_s
        work_s = self.scenario.hop_open_s
        if work_s:
            self.clock.at(arrives, server.cores.start, work_s, partial(server.open, call))
        else:
            self.clock.at(arrives, server.open, call)

    def watch(self, session: SimulatedSession, server: SimulatedServer) -> None:
        """Its client will notice that this server does not answer, if it then still does not."""
        timing = self.scenario.timing
        if server.gone:
            self.clock.after(timing.notice_s, session.lost, server.peer)
        else:
            silence_s = timing.notice_s if server.broken else timing.silence_s
            self.clock.after(silence_s, self._still_silent, session, server)

    def _still_silent(self, session: SimulatedSession, server: SimulatedServer) -> None:
        if server.unreachable or server.gone:
            session.lost(server.peer)

    def release(self, client: PeerId, peer: PeerId, session: SessionId) -> None:
        """`Close` travels to a server."""
        server = self.servers.get(peer)
        if server is not None:
            self.clock.after(self.delay_s(client, peer), server.release, session)

    def cache_needed(self, stage: Stage, tokens: int) -> int:
        """Of a session of `tokens` at a stage, in the unit of the caches."""
        blocks = stage.blocks
        by_block = self.scenario.cache_unit is self.scenario.cache_unit.BLOCK
        return tokens * blocks if by_block else tokens
