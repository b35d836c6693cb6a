"""Clients of the model check: real openings and sessions, and what they answer compared."""

import random
from typing import Any

import msgspec
from hash_chain import HashChain
from model_wire import BLOCKS, CHECKPOINT, Sent, materialize

from swarm.errors import SwarmError
from swarm.sessions.client import ClientSession
from swarm.sessions.events import (
    Deliver,
    Event,
    Forward,
    Instruction,
    NeedsRoute,
    Opened,
    PeerLost,
    Raise,
    Received,
    ShouldMove,
    Tick,
)
from swarm.sessions.messages import Grant, Hop, Message, RowOperation, SignedGrant, Want, encode
from swarm.sessions.opening import Opening
from swarm.spans import PeerId


class NoServersLeftError(SwarmError):
    """So many servers are dead that no route is left."""


class ModelClient:
    """A client that runs a random program and compares every answer with the direct computation."""

    def __init__(
        self,
        peer: PeerId,
        rng: random.Random,
        servers: list[PeerId],
        *,
        turns: int,
        rows: int,
        length: int,
        can_reroute: bool,
        open_deadline_s: float = 60.0,
        eagerness: float = 0.2,
    ) -> None:
        """`eagerness`: how likely `may_act` is while answers are awaited."""
        self.peer = peer
        self.answers = 0
        self.reroutes = 0
        self.error: SwarmError | None = None
        self.done = False
        self._rng = rng
        self._servers = servers
        self._turns = turns
        self._can_reroute = can_reroute
        self._eagerness = eagerness
        self._open_deadline_s = open_deadline_s
        self._lost: set[PeerId] = set()
        self._expected: dict[int, list[list[int]]] = {}
        self._reference = HashChain(0, BLOCKS)
        self._lengths: tuple[int, ...] = ()
        self.session: ClientSession | None = None
        self.grant = Grant(
            session=rng.randbytes(16),
            route=0,
            checkpoint=CHECKPOINT,
            hops=self._cut(0, BLOCKS, servers),
            client=peer,
            rows=rows,
            length=length,
            dtype="float32",
            lifetime_s=600.0,
        )
        self.opening: Opening | None = None

    # ---- what the world calls

    def start(self, now: float) -> list[Sent]:
        self.opening = Opening(self.grant, _signed(self.grant), deadline_s=self._open_deadline_s)
        return self._do(self.opening.start(now), now)

    def receive(self, sender: PeerId, message: Message, payload: Any, now: float) -> list[Sent]:
        return self._event(Received(sender, message, payload), now)

    def lose(self, peer: PeerId, now: float) -> list[Sent]:
        self._lost.add(peer)
        return self._event(PeerLost(peer, "cut"), now)

    def tick(self, now: float) -> list[Sent]:
        return self._event(Tick(), now)

    @property
    def deadline(self) -> float | None:
        if self.done:
            return None
        machines = (self.opening, self.session)
        deadlines = [m.deadline for m in machines if m is not None and m.deadline is not None]
        return min(deadlines, default=None)

    def fence(self, now: float) -> list[Sent]:
        """A step seems late: who has what?"""
        if self.session is None or self.done or not self._can_reroute:
            return []
        if self.session.waited_s(now) <= 0:
            return []
        return self._do(self.session.reroute(self.session.grant, None, now), now)

    @property
    def may_act(self) -> bool:
        """Whether the user would do something of his own now."""
        if self.session is None or self.done or self._opening_goes_on:
            return False
        return not self._expected or self._rng.random() < self._eagerness

    def act(self, now: float) -> list[Sent]:
        """The user's next turn: some steps at once, or the end."""
        assert self.session is not None
        if not self._turns:
            if self._expected:
                return []
            self.done = True
            return self._do(self.session.close(), now)
        self._turns -= 1
        if self._can_reroute and self._rng.random() < 0.1:
            return self._new_route(PeerId(self._rng.choice(self.grant.hops).peer), now)
        sent = self._submit(self._draw_operation(), now)
        for _ in range(self._rng.choice((0, 0, 0, 1, 3))):
            sent += self._submit(None, now)
        return sent

    @property
    def _opening_goes_on(self) -> bool:
        return self.opening is not None and not self.opening.finished

    def _event(self, event: Event, now: float) -> list[Sent]:
        sent: list[Sent] = []
        if self._opening_goes_on and self.opening is not None:
            sent += self._do(self.opening.handle(event, now), now)
        if self.session is not None:
            sent += self._do(self.session.handle(event, now), now)
            self.session.validate()
        return sent

    # ---- steps and their answers

    def _draw_operation(self) -> RowOperation | None:
        lengths = self._lengths
        if not lengths or self._rng.random() < 0.5:
            return None
        rng, parents = self._rng, None
        if rng.random() < 0.6:
            rows = rng.randint(1, self.grant.rows)
            parents = tuple(rng.randrange(len(lengths)) for _ in range(rows))
            lengths = tuple(lengths[parent] for parent in parents)
        truncate_to = None
        if parents is None or rng.random() < 0.5:
            truncate_to = tuple(rng.randint(max(0, n - 5), n) for n in lengths)
        return RowOperation(parents=parents, truncate_to=truncate_to)

    def _submit(self, operation: RowOperation | None, now: float) -> list[Sent]:
        assert self.session is not None
        rng, lengths = self._rng, self._lengths
        if operation is not None:
            if operation.parents is not None:
                lengths = tuple(lengths[parent] for parent in operation.parents)
            lengths = operation.truncate_to or lengths
        rows = len(lengths) or rng.randint(1, self.grant.rows)
        starts = lengths or (0,) * rows
        most = rng.choice((1, 1, 1, 4, 9))
        counts = tuple(
            min(rng.randint(0 if rows > 1 else 1, most), self.grant.length - start)
            for start in starts
        )
        if not sum(counts):
            return []
        inputs = [rng.getrandbits(40) for _ in range(sum(counts))]
        position_ids = tuple(rng.randrange(100) for _ in inputs)
        want = rng.choice(list(Want))
        ticket, instructions = self.session.step(
            counts, position_ids, want, inputs, now=now, operation=operation
        )
        if operation is not None:
            self._reference.apply(operation.parents, operation.truncate_to)
        outputs = self._reference.forward(starts, counts, position_ids, inputs)
        self._lengths = tuple(map(sum, zip(starts, counts, strict=True)))
        self._expected[ticket] = _by_row(outputs, counts, want)
        return self._do(instructions, now)

    def _deliver(self, deliver: Deliver) -> None:
        expected = self._expected.pop(deliver.ticket)
        answer = _by_row(deliver.payload, deliver.output.counts, Want.ALL)
        assert answer == expected, "a wrong answer"
        self.answers += 1

    # ---- routes

    def _cut(self, start: int, end: int, servers: list[PeerId]) -> tuple[Hop, ...]:
        """Some servers, in random order, for blocks `start:end`, cut at random places."""
        most = min(len(servers), end - start, 3)
        hops = self._rng.randint(1, most)
        cuts = [start, *sorted(self._rng.sample(range(start + 1, end), hops - 1)), end]
        chosen = self._rng.sample(servers, hops)
        return tuple(Hop(peer, a, b) for peer, a, b in zip(chosen, cuts, cuts[1:], strict=False))

    def _new_route(self, without: PeerId, now: float) -> list[Sent]:
        """Open other hops in place of `without` and all that are lost, and go on over them."""
        assert self.session is not None
        held = {hop.peer: hop for hop in self.session.grant.hops}
        keep = [hop for peer, hop in held.items() if peer not in self._lost | {without}]
        others = [p for p in self._servers if p not in self._lost and p not in held]
        hops: list[Hop] = []
        reached = 0
        for hop in [*keep, None]:
            until = BLOCKS if hop is None else hop.start
            if until > reached:
                if not others:
                    return self._give_up(NoServersLeftError("no servers are left"), now)
                hops += self._cut(reached, until, others)
                others = [p for p in others if p not in {hop.peer for hop in hops}]
            if hop is not None:
                hops.append(hop)
                reached = hop.end
        sent = self._do(self.session.close_left(), now)
        sent += self._cancel_opening(now)
        self.grant = msgspec.structs.replace(
            self.grant, route=self.grant.route + 1, hops=tuple(hops)
        )
        fresh = tuple(i for i, hop in enumerate(hops) if hop not in keep)
        # Half as long as a new session waits, which may wait for what this one holds.
        self.opening = Opening(
            self.grant, _signed(self.grant), deadline_s=self._open_deadline_s / 2, hops=fresh
        )
        return sent + self._do(self.opening.start(now), now)

    def _opened(self, now: float) -> list[Sent]:
        if self.session is None:
            self.session = ClientSession(
                self.grant, window=self._rng.randint(1, 4), can_reroute=self._can_reroute
            )
            return []
        self.reroutes += 1
        return self._do(self.session.reroute(self.grant, _signed(self.grant), now), now)

    def _give_up(self, error: SwarmError, now: float) -> list[Sent]:
        self.error, self.done = error, True
        sent = self._cancel_opening(now)
        return sent + (self._do(self.session.close(), now) if self.session is not None else [])

    def _cancel_opening(self, now: float) -> list[Sent]:
        if self.opening is None or self.opening.finished:
            return []
        return self._do(self.opening.cancel(), now)

    def _do(self, instructions: list[Instruction], now: float) -> list[Sent]:
        sent: list[Sent] = []
        for instruction in instructions:
            match instruction:
                case Forward():
                    sent.append(materialize(instruction, ()))
                case Deliver():
                    self._deliver(instruction)
                case Opened():
                    sent += self._opened(now)
                case NeedsRoute(peer=peer):
                    self._lost.add(peer)
                    sent += self._new_route(peer, now)
                case ShouldMove(peer=peer):
                    if self._can_reroute and not self.done:
                        self._lost.add(peer)
                        sent += self._new_route(peer, now)
                case Raise(error=error):
                    if self.session is not None and self.session.error is None:
                        # Only the way to a fresh hop failed: try others.
                        self._lost.add(PeerId(getattr(error, "peer", "") or ""))
                        sent += self._new_route(PeerId(""), now)
                    else:
                        sent += self._give_up(error, now)
                case _:
                    raise AssertionError(instruction)
        return sent


def _by_row(outputs: list[int], counts: tuple[int, ...], want: Want) -> list[list[int]]:
    rows, first = [], 0
    for count in counts:
        row = outputs[first : first + count]
        rows.append({Want.ALL: row, Want.LAST: row[-1:], Want.NONE: []}[want])
        first += count
    return rows


def _signed(grant: Grant) -> SignedGrant:
    return SignedGrant(encode(grant), b"s" * 64)
