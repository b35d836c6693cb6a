"""When a session leaves hops that serve it, because others would serve it much better."""

import asyncio
import random
from collections import deque
from statistics import median
from typing import TYPE_CHECKING

from swarm.client.loads import ask_loads
from swarm.client.routes import ClientRouter
from swarm.client.target import Target
from swarm.errors import SwarmError
from swarm.sessions.messages import Grant
from swarm.spans import PeerId, SessionId, Span

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm

LOOK_S = 5.0
"""About how often a session looks for a better route."""
LOOKS = 3
"""So many times in a row there has to be one."""
MUCH_BETTER = 0.7
"""Its steps take at most this share of the present ones'."""
MIN_GAIN_S = 0.01
"""And so much less."""
REST_S = 60.0
"""How long a session stays after it has gone."""
STEPS_KEPT = 16
FEWEST_STEPS = 8


def is_much_better(present_s: float, other_s: float) -> bool:
    """Whether steps of `other_s` are worth leaving those of `present_s` for."""
    return other_s <= MUCH_BETTER * present_s and present_s - other_s >= MIN_GAIN_S


class Patience:
    """Whether it is time to go; pure. Times in seconds of one clock.

    A move costs the new hops a computation of all that is in the cache, and many sessions may see
    the same better servers at once: so a route has to be better by a margin, again and again, and
    who went stays for a while.
    """

    def __init__(self, now: float, rng: random.Random) -> None:
        self._rng = rng
        self._looks = 0
        self._next_look = now + LOOK_S * rng.uniform(0.5, 1.5)

    def is_due(self, now: float) -> bool:
        """Whether `look` is to be called."""
        return now >= self._next_look

    def look(self, present_s: float, other_s: float, now: float) -> bool:
        """Whether to go; what a step takes now and would take over the best other route."""
        self._next_look = now + LOOK_S * self._rng.uniform(0.5, 1.5)
        self._looks = self._looks + 1 if is_much_better(present_s, other_s) else 0
        if self._looks < LOOKS:
            return False
        self.went(now)
        return True

    def went(self, now: float) -> None:
        """The session has other hops, whatever the reason."""
        self._looks = 0
        self._next_look = now + REST_S * self._rng.uniform(1.0, 1.5)


class Improving:
    """Watches one session's steps; `given_up` are the hops that are to be replaced."""

    def __init__(self, swarm: "Swarm", target: Target, router: ClientRouter) -> None:
        self.given_up: set[PeerId] = set()
        self._swarm = swarm
        self._target = target
        self._router = router
        self._patience = Patience(swarm.time, random.Random())
        self._steps_s: deque[float] = deque(maxlen=STEPS_KEPT)
        self._asking: asyncio.Task[None] | None = None

    def answered(self, seconds: float | None) -> None:
        """A decode step took so long; None: it was something else."""
        if seconds is not None:
            self._steps_s.append(seconds)

    def went(self) -> None:
        """The session has other hops."""
        self.given_up.clear()
        self._steps_s.clear()
        if self._asking is not None:
            self._asking.cancel()
        self._asking = None
        self._patience.went(self._swarm.time)

    def stays(self) -> None:
        """No way was found to go."""
        self.given_up.clear()

    def look(self, grant: Grant, now: float) -> bool:
        """Whether the session is to leave the hops that are now in `given_up`.

        Before it goes it asks the others how busy they are: who looked a moment earlier may have
        gone there.
        """
        if self._asking is not None:
            if not self._asking.done():
                return False
            self._asking = None
            present_s, other_s, worse = self._compare(grant)
            if not is_much_better(present_s, other_s):
                return False
            self.given_up = worse
            return True
        if not self._patience.is_due(now) or len(self._steps_s) < FEWEST_STEPS:
            return False
        present_s, other_s, worse = self._compare(grant)
        if self._patience.look(present_s, other_s, now):
            records = self._swarm.known_servers(self._target.checkpoint)
            gaps = [Span(hop.start, hop.end) for hop in grant.hops if hop.peer in worse]
            self._asking = asyncio.ensure_future(
                ask_loads(self._swarm, self._router, records, gaps)
            )
        return False

    def _compare(self, grant: Grant) -> tuple[float, float, set[PeerId]]:
        """What a step takes, what it would take over the best other route, and the hops that are
        not on that."""
        records = self._swarm.known_servers(self._target.checkpoint)
        view, router = self._target.view(records), self._router
        session = SessionId(grant.session)
        rtt_s = self._swarm.rtt_s([server.peer for server in view.servers])
        present_s = seen_s = median(self._steps_s)
        announced_s = router.step_s(view, grant.hops, rtt_s, announced=True)
        if announced_s is not None:
            router.saw_step(grant.hops, seen_s - announced_s)
            present_s = max(announced_s, seen_s)
        left_out = self._swarm.in_trouble() | self._swarm.doubted(records)
        try:
            best = router.route(
                view,
                rtt_s=rtt_s,
                tokens_needed=0,
                avoid=left_out - {PeerId(hop.peer) for hop in grant.hops},
                leaving=session,
            )
        except SwarmError:
            return present_s, present_s, set()
        other_s = router.step_s(view, best, rtt_s, leaving=session)
        worse = {PeerId(hop.peer) for hop in grant.hops} - {hop.peer for hop in best}
        if other_s is None or not worse:
            return present_s, present_s, set()
        return present_s, other_s, worse
