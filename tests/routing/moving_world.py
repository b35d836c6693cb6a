"""Servers that move on a virtual clock, over a directory that is read late."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count
from random import Random

from routing_views import CHECKPOINT, FLOAT32, server

from swarm.routing.coverage import place_server
from swarm.routing.moving import Action, Mover, MoveRules
from swarm.routing.view import ServerState, ServerView, SwarmView
from swarm.spans import PeerId, Span, missing_spans

RULES = MoveRules()
LATE_S = 4.0
"""So late a record may be read."""
DEAD_S = 30.0
"""So long a killed server is still in the directory."""


@dataclass
class Moving:
    """One server as it really is."""

    view: ServerView
    mover: Mover | None
    alive: bool = True
    serving: bool = True
    moves: int = 0
    can_load: bool = True
    """Whether it can serve other blocks than its first ones."""
    side: int = 0
    """Of a partition: it reads the records of its own side only."""


class MovingWorld:
    """`opened`: gaps that a move has opened in a swarm that was whole."""

    def __init__(self, num_blocks: int, rng: Random, *, reload_s: float = 40.0) -> None:
        self.num_blocks = num_blocks
        self.rng = rng
        self.reload_s = reload_s
        self.now = 0.0
        self.servers: dict[PeerId, Moving] = {}
        self.opened: list[str] = []
        self.moves: list[tuple[float, PeerId]] = []
        self._told: dict[PeerId, list[tuple[float, ServerView | None]]] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    # ---- what happens

    def join(self, name: str, size: int, ms: float = 1.0, blocks: Span | None = None) -> None:
        """Chooses its blocks, loads and comes online; with `blocks` it never moves."""
        peer = PeerId(f"server-{name}")
        span = blocks or place_server(self.read(peer), size, ms, FLOAT32)
        view = server(name, span.start, span.end, decode_ms_per_block=ms, may_move=blocks is None)
        mover = None if blocks else Mover(peer, RULES, Random(self.rng.random()), now=self.now)
        self.servers[peer] = Moving(view, mover, serving=False)
        self._tell(peer, replace(view, state=ServerState.JOINING))
        self._at(self.now + self.rng.uniform(1.2, 2.0) * LATE_S, lambda: self._arrive(peer))

    def kill(self, peer: PeerId) -> None:
        self.servers[peer].alive = False
        self._told[peer].append((self.now + DEAD_S, None))

    def cut(self, peers: Iterable[PeerId]) -> None:
        """From now on these read each other only, and the others them no more."""
        for peer in peers:
            self.servers[peer].side = 1

    def heal(self) -> None:
        for one in self.servers.values():
            one.side = 0

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            self.now, _, work = heapq.heappop(self._due)
            work()
        self.now = until

    # ---- what is so

    def missing(self) -> list[Span]:
        """Blocks that nobody serves now."""
        return missing_spans(
            [one.view.span for one in self.servers.values() if one.alive and one.serving],
            self.num_blocks,
        )

    def read(self, reader: PeerId) -> SwarmView:
        """The directory: of each server a record that is up to `LATE_S` old, of itself the last."""
        late = self.now - self.rng.uniform(0, LATE_S)
        found = []
        side = self.servers[reader].side if reader in self.servers else 0
        for peer, told in self._told.items():
            if self.servers[peer].side != side:
                continue
            seen = self.now if peer == reader else late
            views = [view for when, view in told if when <= seen]
            if views and views[-1] is not None:
                found.append(views[-1])
        return SwarmView(CHECKPOINT, self.num_blocks, tuple(found))

    # ---- inside

    def _at(self, when: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._order), work))

    def _tell(self, peer: PeerId, view: ServerView) -> None:
        self.servers[peer].view = view
        self._told.setdefault(peer, []).append((self.now, view))

    def _may_move(self, one: Moving) -> bool:
        return one.mover is not None and one.mover.may_move(self.now)

    def _look(self, peer: PeerId) -> None:
        one = self.servers[peer]
        if not one.alive or one.mover is None:
            return
        noise = self.rng.uniform(0.9, 1.1)
        mine = replace(one.view, decode_ms_per_block=one.view.decode_ms_per_block * noise)
        decision = one.mover.look(self.read(peer), mine, self.now, reload_s=self.reload_s)
        match decision.action:
            case Action.ANNOUNCE:
                self._tell(peer, replace(one.view, moving_to=decision.span, may_move=True))
            case Action.WITHDRAW:
                self._tell(peer, replace(one.view, moving_to=None))
            case Action.GO:
                assert decision.span is not None
                self._go(peer, decision.span)
                return
        self._at(one.mover.next_look, lambda: self._look(peer))

    def _go(self, peer: PeerId, span: Span) -> None:
        one = self.servers[peer]
        whole = not self.missing()
        one.serving = False
        one.moves += 1
        self.moves.append((self.now, peer))
        if whole and self.missing():
            self.opened.append(f"{self.now:.0f} s: {peer} left {one.view.span} for {span}")
        self._tell(peer, replace(one.view, state=ServerState.DRAINING))
        loading = replace(one.view, span=span, moving_to=None, state=ServerState.JOINING)
        self._at(self.now + 1.0, lambda: one.alive and self._tell(peer, loading))
        back = None if one.can_load else one.view.span
        self._at(
            self.now + self.reload_s * self.rng.uniform(0.5, 1.5), lambda: self._arrive(peer, back)
        )

    def _arrive(self, peer: PeerId, back: Span | None = None) -> None:
        """Online; with `back` on these blocks again, after it could not load others."""
        one = self.servers[peer]
        if not one.alive:
            return
        one.serving = True
        if one.mover is not None and one.moves:
            (one.mover.arrived if back is None else one.mover.failed)(self.now)
        span = back or one.view.span
        self._tell(
            peer,
            replace(one.view, span=span, state=ServerState.ONLINE, may_move=self._may_move(one)),
        )
        if one.mover is None:
            return
        self._at(one.mover.next_look, lambda: self._look(peer))
