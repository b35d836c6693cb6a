"""A client's session on the virtual clock: route, opening, prompt, tokens, and repairs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarm.errors import MissingBlocksError, SwarmError
from swarm.routing.router import Route, RouteRequest
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.prefill_chunks import chunk_tokens
from swarm.sessions.events import Event, Forward, Opened, Raise, Received, Tick
from swarm.sessions.events import PeerLost as LostPeer
from swarm.sessions.messages import MAX_STEP_TOKENS, Close, Grant, Message, Open, SignedGrant
from swarm.sessions.opening import Opening
from swarm.simulator.requests import Outcome, Request
from swarm.simulator.server import Call
from swarm.simulator.steps import Stage, Step
from swarm.spans import PeerId, SessionId

if TYPE_CHECKING:
    from swarm.simulator.client import SimulatedClient

_UNSIGNED = SignedGrant(b"", b"")
_FIRST_LOOK_TOKENS, _LOOK_TOKENS = 8, 64
"""After so many tokens over a route a client compares it with what was promised, and from then on
each time after so many more."""


class SimulatedSession:
    """One request from its arrival to its end."""

    def __init__(self, owner: "SimulatedClient", request: Request, session: SessionId) -> None:
        self.id = session
        self.client = owner.peer
        self.epoch = 0
        self.request = request
        self._owner = owner
        self._world = owner.world
        self._clock = owner.world.clock
        self._stages: list[Stage] = []
        self._back_s = 0.0
        """From the last hop to the client, one token."""
        self._held = 0
        """Tokens whose cache every hop of the route has."""
        self._unsent = 0
        """Of the prompt."""
        self._chunks_out = 0
        self._opening: Opening | None = None
        self._new_hops: tuple[int, ...] = ()
        self._route: Route | None = None
        self._give_up_at = request.arrived + owner.timing.open_timeout_s
        self._missing_since: float | None = None
        """Since when some blocks have no server."""
        self._last_token_at = 0.0
        self._route_tokens = 0
        """Decoded over the route that it has now, and since when."""
        self._route_since = 0.0
        self._lost: set[PeerId] = set()
        """Servers that this session has lost and not replaced yet."""

    # ---- finding a route

    def find_route(self) -> None:
        """Ask the router; when it has none, wait and ask again until the time is over."""
        if self.request.outcome is not None:
            return
        try:
            route = self._owner.route(self, self._question())
        except MissingBlocksError as error:
            self._look_again(error)
            return
        except SwarmError as error:
            self._fail(error)
            return
        if route is None:
            self._owner.wait_in_line(self)
        else:
            self._open(route)

    def _question(self) -> RouteRequest:
        request, reserved = self.request, self._world.scenario.traffic.reserved_output
        return RouteRequest(
            client=self.client,
            prompt_tokens=max(1, self._held or request.prompt_tokens),
            output_tokens=max(1, reserved - request.tokens),
            reserve_tokens=self._length,
            avoid=frozenset(self._owner.left_out()),
        )

    @property
    def _length(self) -> int:
        """Slots that are reserved."""
        request, reserved = self.request, self._world.scenario.traffic.reserved_output
        return request.prompt_tokens + max(reserved, request.output_tokens)

    def _look_again(self, error: MissingBlocksError) -> None:
        """At a new list of servers, in a while; who has no session yet gives up sooner."""
        now, timing = self._clock.now, self._owner.timing
        if self._missing_since is None:
            self._missing_since = now
        waited_s = now - self._missing_since
        new = self.request.opened is None
        if now >= self._give_up_at or (new and waited_s >= timing.missing_timeout_s):
            self._fail(error)
        else:
            self._clock.after(timing.retry_s, self._owner.look_up)
            self._clock.after(timing.retry_s, self.find_route)

    # ---- opening

    def _open(self, route: Route) -> None:
        stages = self._world.stages(self.client, route)
        before = self._stages
        self._missing_since = None
        self._route = route
        self._stages, self._back_s = stages
        kept = {_place(stage) for stage in before if self._may_keep(stage)}
        kept &= {_place(stage) for stage in self._stages}
        self._release([stage for stage in before if _place(stage) not in kept])
        self._new_hops = tuple(
            index for index, stage in enumerate(self._stages) if _place(stage) not in kept
        )
        grant = Grant(
            session=self.id,
            route=0,
            checkpoint=self._world.checkpoint,
            hops=route.hops,
            client=self.client,
            rows=1,
            length=self._length,
            dtype="bfloat16",
            lifetime_s=24 * 3600.0,
        )
        left_s = max(0.0, self._give_up_at - self._clock.now)
        self._opening = Opening(grant, _UNSIGNED, deadline_s=left_s, hops=self._new_hops)
        self._watch_opening()
        self._obey(self._opening.start(self._clock.now))

    def _may_keep(self, stage: Stage) -> bool:
        server = stage.server
        return server.knows(self.id) and server.peer not in self._lost

    def answered(self, sender: PeerId, message: Message) -> None:
        """A hop has answered `Open`."""
        self._opening_event(Received(sender, message))

    def _opening_event(self, event: Event) -> None:
        if self._opening is not None:
            self._obey(self._opening.handle(event, self._clock.now))
            self._watch_opening()

    def _watch_opening(self) -> None:
        """`Tick` at its deadline; a deadline that has moved meanwhile is looked at again."""
        opening = self._opening
        if opening is not None and opening.deadline is not None:
            self._clock.at(opening.deadline, self._tick, opening)

    def _tick(self, opening: Opening) -> None:
        if opening is self._opening and not opening.finished:
            self._obey(opening.handle(Tick(), self._clock.now))

    def _obey(self, instructions: Sequence[object]) -> None:
        for instruction in instructions:
            match instruction:
                case Forward(to=peer, message=Open() as message):
                    self._ask(PeerId(peer), message)
                case Forward(to=peer, message=Close()):
                    self._world.release(self.client, PeerId(peer), self.id)
                case Opened():
                    self._opened()
                case Raise(error):
                    self._refused(error)

    def _ask(self, peer: PeerId, message: Open) -> None:
        stage = self._stages[message.hop]
        delay_s = self._world.delay_s(self.client, peer)
        assert self._route is not None
        ends_after_s = self._route.request_s(self._question().output_tokens)
        tokens = self._world.cache_needed(stage, self._length)
        call = Call(self, self.id, self.client, message, tokens, ends_after_s, delay_s)
        self._world.ask(stage.server, call)
        if stage.server.gone:
            notice_s = delay_s + self._owner.timing.notice_s
            self._clock.after(notice_s, self._opening_event, LostPeer(peer, "nobody is there"))

    def _refused(self, error: SwarmError) -> None:
        self._opening = None
        peer = getattr(error, "peer", None)
        self._owner.closed(self)
        if peer is not None:
            self._owner.failed(PeerId(peer))
        # The hops that were kept are given back too: the next route may not have them.
        self._release(self._stages)
        self._stages = []
        if peer is None or self._clock.now >= self._give_up_at:
            self._fail(error)
        else:
            # It is left out now; who else there is can be asked at once.
            self._clock.after(0.0, self.find_route)

    def _opened(self) -> None:
        self._opening = None
        request = self.request
        request.hops.append(len(self._stages))
        self._world.took(self.client, self._stages, self._new_hops)
        for index in self._new_hops:
            self._owner.served(self._stages[index].server.peer)
        self._route_tokens = 0
        self._lost.clear()
        if request.opened is None:
            request.opened = self._clock.now
        if self._held:
            self._refill()
        else:
            self._unsent = request.prompt_tokens
            self._chunks_out = 0
            self._send_prompt()

    # ---- steps

    def _send_prompt(self) -> None:
        timing, prompt_tokens = self._owner.timing, self.request.prompt_tokens
        most = timing.chunk_tokens or chunk_tokens(prompt_tokens, len(self._stages))
        while self._unsent and self._chunks_out < timing.window:
            tokens = min(self._unsent, most)
            done = prompt_tokens - self._unsent
            self._unsent -= tokens
            self._chunks_out += 1
            self._send(ServiceClass.PREFILL, tokens, done, self._stages)

    def _refill(self) -> None:
        """The new hops get what the session has already; then the interrupted token."""
        stages = [self._stages[index] for index in self._new_hops]
        self._unsent = self._held if stages else 0
        self._chunks_out = 0
        if not stages:
            self._next_token()
        while self._unsent:
            tokens = min(self._unsent, MAX_STEP_TOKENS)
            done = self._held - self._unsent
            self._unsent -= tokens
            self._chunks_out += 1
            self._send(ServiceClass.REPAIR, tokens, done, stages)

    def _next_token(self) -> None:
        if not self._route_tokens:
            self._route_since = self._clock.now
        self._send(ServiceClass.DECODE, 1, self._held, self._stages)

    def _send(
        self, service_class: ServiceClass, tokens: int, context: int, stages: list[Stage]
    ) -> None:
        step = Step(self, self.epoch, service_class, tokens, context, stages)
        self._world.carry(step)

    def computed(self, step: Step) -> None:
        """A hop has finished the step."""
        step.at += 1
        step.done = 0
        if step.at < len(step.stages):
            self._world.carry(step)
        else:
            self._clock.after(self._back_s, self._answer, step)

    def spoilt(self, step: Step) -> None:
        """A hop says that what it computed is no number."""
        peer = step.stages[step.at].server.peer
        if step.epoch == self.epoch:
            self._clock.after(self._world.delay_s(peer, self.client), self.lost, peer)

    def _answer(self, step: Step) -> None:
        """The last hop's output has arrived."""
        if step.epoch != self.epoch or self.request.outcome is not None:
            return
        if step.service_class is ServiceClass.DECODE:
            self._held += 1
            self._route_tokens += 1
            self._compute_token()
            return
        self._chunks_out -= 1
        if step.service_class is ServiceClass.PREFILL:
            self._send_prompt()
            if not self._chunks_out:
                self._held = self.request.prompt_tokens
                self._compute_token()
        elif not self._chunks_out:
            self._next_token()

    def _compute_token(self) -> None:
        """The client's own part of a token."""
        work_s = self._world.scenario.client_token_s
        if work_s:
            epoch = self.epoch
            cores = self._world.cores_of(self.client)
            cores.start(work_s, lambda: self._token() if epoch == self.epoch else None)
        else:
            self._token()

    def _token(self) -> None:
        request, now = self.request, self._clock.now
        request.tokens += 1
        if request.first is None:
            request.first = now
        else:
            request.longest_gap_s = max(request.longest_gap_s, now - self._last_token_at)
        self._last_token_at = now
        if request.tokens >= request.output_tokens:
            self._end(Outcome.DONE)
        elif not self._moves_on():
            self._next_token()

    def _moves_on(self) -> bool:
        """Whether the session goes over to a route that is much better than its own proved."""
        tokens = self._route_tokens
        if tokens < _FIRST_LOOK_TOKENS or (tokens - _FIRST_LOOK_TOKENS) % _LOOK_TOKENS:
            return False
        tpot_s = (self._clock.now - self._route_since) / tokens
        route = self._owner.measured(self, tpot_s, self._question())
        if route is None:
            return False
        self.request.moves += 1
        self.epoch += 1
        self._give_up_at = self._clock.now + self._owner.timing.repair_timeout_s
        self._open(route)
        return True

    # ---- trouble

    def lost(self, peer: PeerId) -> None:
        """The client has noticed that a server of the route is gone, is silent, or will leave."""
        if self.request.outcome is not None or peer in self._lost or peer not in self.peers:
            return
        if self._opening is not None:
            self._opening_event(LostPeer(peer, "its link is lost"))
            return
        first = not self._lost
        self._lost.add(peer)
        self._owner.failed(peer)
        if not first:
            # The route that is looked for already will not have it.
            return
        self.epoch += 1
        self.request.repairs += 1
        self._give_up_at = self._clock.now + self._owner.timing.repair_timeout_s
        for stage in self._stages:
            stage.server.forget_steps(self.id)
        self._owner.closed(self)
        self.find_route()

    def _fail(self, error: SwarmError) -> None:
        self.request.failure, self.request.why = type(error).__name__, str(error)
        self._end(Outcome.FAILED)

    def _end(self, outcome: Outcome) -> None:
        self.request.ended = self._clock.now
        self.request.outcome = outcome
        self.epoch += 1
        self._release(self._stages)
        self._owner.ended(self)

    def _release(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            self._world.release(self.client, stage.server.peer, self.id)

    @property
    def peers(self) -> set[PeerId]:
        """The servers of its route."""
        return {stage.server.peer for stage in self._stages}


def _place(stage: Stage) -> tuple[PeerId, int, int]:
    return stage.server.peer, stage.hop.start, stage.hop.end
