"""When a server leaves its blocks for others: it looks at the swarm, and is asked again later.

No server decides for another. Who wants to move says so in its record first and looks again when
the others had time to read it (`settle_s`): what others intend counts as done, except that nobody
relies on them for the blocks that it leaves. So a move opens no gap, and two servers that want to
close the same gap do not both go.
"""

from dataclasses import dataclass
from enum import StrEnum
from random import Random

import numpy as np

from swarm.routing.coverage import (
    Holder,
    best_span,
    block_rates,
    holders,
    rate_of,
    usual_ms,
    weakness_s,
)
from swarm.routing.network import Floats
from swarm.routing.shifting import fewest_moves
from swarm.routing.view import ServerView, SwarmView
from swarm.spans import PeerId, Span, missing_spans


@dataclass(frozen=True)
class MoveRules:
    """When a move is worth it. Times in seconds."""

    check_s: float = 60.0
    """Between two looks, on average."""
    settle_s: float = 20.0
    """From saying that it will move to moving: longer than a record takes to be read by all."""
    urgent_s: float = 4.0
    """The same, and between two looks, while blocks are missing."""
    least_gain: float = 1.25
    """How many times better the swarm has to be, reloading included, while no block is missing."""
    looks: int = 3
    """How many times in a row it must look so."""
    rest_checks: int = 10
    """How many checks a server stays where it went, while no block is missing."""
    stay_s: float = 1800.0
    """Over which a move has to pay."""

    def pause_s(self, failures: int) -> float:
        """How long a server stays after so many moves in a row that failed."""
        doubled = min(failures - 1, self.rest_checks)  # of more, no power can be taken some day
        return self.check_s * min(self.rest_checks, 2.0**doubled)


class Action(StrEnum):
    """What a look leads to."""

    STAY = "stay"
    ANNOUNCE = "announce"
    """Say in the record that it will move."""
    WITHDRAW = "withdraw"
    """It stays after all."""
    GO = "go"
    """Drain, load, be online there; then call `arrived`."""


@dataclass(frozen=True)
class Decision:
    """`span`: where it goes (announce, go)."""

    action: Action
    span: Span | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Wish:
    span: Span
    reason: str
    looks: int


class Mover:
    """Decides for one server; `next_look` says when `look` is to be called. Pure."""

    def __init__(self, me: PeerId, rules: MoveRules, rng: Random, *, now: float) -> None:
        self._me = me
        self._rules = rules
        self._rng = rng
        self._intent: Span | None = None
        self._wished = 0
        self._rests_until = now
        self._failures = 0
        self._barred_until = now
        self.next_look = self._after(now, rules.check_s)

    def may_move(self, now: float) -> bool:
        """False: its last move failed, and it will not try again soon; others mend without it."""
        return now >= self._barred_until

    def look(self, view: SwarmView, mine: ServerView, now: float, *, reload_s: float) -> Decision:
        """`view`: the newest snapshot, without servers that are known to be dead; `mine`: how this
        server is now, with the announced intent; `reload_s`: how long it would be away."""
        if not self.may_move(now):
            self.next_look = self._barred_until + self._rng.uniform(0.0, self._rules.urgent_s)
            return Decision(Action.STAY)
        scene = _Scene.of(view, mine)
        if self._intent is not None:
            return self._settled(scene, self._intent, now, reload_s)
        wish = self._wish(scene, now, reload_s)
        if wish is None:
            self._wished = 0
        else:
            self._wished += 1
            if self._wished >= wish.looks:
                self._intent = wish.span
                settle_s = self._rules.urgent_s if scene.missing else self._rules.settle_s
                self.next_look = now + settle_s * self._rng.uniform(1.0, 1.5)
                return Decision(Action.ANNOUNCE, wish.span, wish.reason)
        self.next_look = self._after(
            now, self._rules.urgent_s if scene.missing else self._rules.check_s
        )
        return Decision(Action.STAY)

    def alarm(self, now: float) -> None:
        """Blocks have lost their last server: it looks soon."""
        soon = now + self._rules.urgent_s * self._rng.uniform(0.0, 0.5)
        if self._intent is None and self.may_move(now):
            self.next_look = min(self.next_look, soon)

    def arrived(self, now: float) -> None:
        """It is online on the blocks where it went."""
        self._intent = None
        self._wished = 0
        self._failures = 0
        self._rests_until = now + self._rules.rest_checks * self._rules.check_s
        self.next_look = self._after(now, self._rules.check_s)

    def gave_up(self, now: float) -> None:
        """The announcement reached nobody: it stays, and looks again later."""
        self._intent = None
        self._wished = 0
        self.next_look = self._after(now, self._rules.check_s)

    def failed(self, now: float) -> None:
        """It cannot serve the blocks where it wanted to go: it stays, the longer the more often
        that happens, also while blocks are missing."""
        self._failures += 1
        self._barred_until = now + self._rules.pause_s(self._failures)
        self.gave_up(now)
        self.next_look = max(self.next_look, self._barred_until)

    def _after(self, now: float, seconds: float) -> float:
        """Servers that saw the same do not answer at the same moment."""
        return now + seconds * self._rng.uniform(0.5, 1.5)

    def _settled(self, scene: "_Scene", span: Span, now: float, reload_s: float) -> Decision:
        reason = self._judge(scene, span, now, reload_s)
        if reason is not None:
            self.next_look = now + self._rules.check_s
            return Decision(Action.GO, span, reason)
        self.gave_up(now)
        return Decision(Action.WITHDRAW, None, "it is not needed there any more")

    def _wish(self, scene: "_Scene", now: float, reload_s: float) -> _Wish | None:
        for span in scene.targets():
            reason = self._judge(scene, span, now, reload_s)
            if reason is not None:
                urgent = scene.missing and (scene.planned or not scene.uncovered_by_leaving)
                return _Wish(span, reason, 1 if urgent else self._rules.looks)
        return None

    def _judge(self, scene: "_Scene", span: Span, now: float, reload_s: float) -> str | None:
        """Why going to `span` is right; None: it is not."""
        if span == scene.mine.span:
            return None
        if scene.missing and not (scene.whole and scene.opens_gap):
            return self._why_mend(scene, span)
        if scene.opens_gap or now < self._rests_until:
            return None
        away, stay = min(reload_s, self._rules.stay_s), self._rules.stay_s
        after_s = (
            away * weakness_s(scene.without) + (stay - away) * scene.weakness_at(span)
        ) / stay
        gain = scene.weakness_at(scene.mine.span) / after_s
        if gain < self._rules.least_gain:
            return None
        return f"that makes the swarm {gain:.1f} times as fast"

    def _why_mend(self, scene: "_Scene", span: Span) -> str | None:
        """Best is one move that makes the swarm whole, then the fewest that do together, then one
        that leaves less missing."""
        covered = scene.covered_at(span)
        if covered < scene.num_blocks:
            if scene.planned:
                if scene.planned.get(self._me) != span:
                    return None
            elif covered <= scene.covered_at(scene.mine.span):
                return None
        return f"blocks {', '.join(map(str, scene.missing))} have no server"


@dataclass(frozen=True)
class _Scene:
    """The swarm as one server sees it: those that compute as it does."""

    mine: ServerView
    num_blocks: int
    rate: float
    without: Floats
    """`[num_blocks]`: the rates of all others, where they are or will be."""
    missing: list[Span]
    """What nobody holds or will hold."""
    whole: bool
    """Whether every block is online now: what is missing then is what others mean to leave, and
    some of them will stay."""
    opens_gap: bool
    """Whether a block of its own has no other server that is online and stays."""
    planned: dict[PeerId, Span]
    """The moves that make the swarm whole, if one server's alone cannot."""

    @classmethod
    def of(cls, view: SwarmView, mine: ServerView) -> "_Scene":
        others = [one for one in holders(view, (mine.peer,)) if one.numerics == mine.numerics]
        size = len(mine.span)
        rate = rate_of(mine.decode_ms_per_block, size, usual_ms(view))
        without = block_rates(others, view.num_blocks)
        online = [one for one in view.online((mine.peer,)) if one.numerics == mine.numerics]
        staying = [one.span for one in online if one.moving_to is None]
        missing = missing_spans([*(one.span for one in others), mine.span], view.num_blocks)
        planned: dict[PeerId, Span] = {}
        if missing:
            movable = {one.peer for one in view.servers if one.may_move and one.moving_to is None}
            me = Holder(mine.peer, mine.span, mine.numerics, rate)
            planned = fewest_moves([*others, me], movable | {mine.peer}, view.num_blocks)
        return cls(
            mine,
            view.num_blocks,
            rate,
            without,
            missing,
            not missing_spans([*(one.span for one in online), mine.span], view.num_blocks),
            any(
                part.start < mine.span.end and mine.span.start < part.end
                for part in missing_spans(staying, view.num_blocks)
            ),
            planned,
        )

    @property
    def uncovered_by_leaving(self) -> bool:
        """Whether some of its blocks would have nobody."""
        return bool((self.without[self.mine.span.start : self.mine.span.end] == 0).any())

    def targets(self) -> list[Span]:
        """Where it might go, best first."""
        best = best_span(self.without, len(self.mine.span), self.rate)
        planned = self.planned.get(self.mine.peer)
        return [best] if planned is None else [best, planned]

    def covered_at(self, span: Span) -> int:
        """Blocks that somebody holds if this server is at `span`."""
        return int(np.count_nonzero(self._rates_at(span)))

    def weakness_at(self, span: Span) -> float:
        return weakness_s(self._rates_at(span))

    def _rates_at(self, span: Span) -> Floats:
        rates = self.without.copy()
        rates[span.start : span.end] += self.rate
        return rates
