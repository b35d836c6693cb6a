"""How many decode rows a pass takes, so that sessions do not pass the chain in one convoy.

Where all sessions of a chain wait at one server, as behind a prompt's pass, they leave it together,
and from then on each server computes for all of them and is idle until they come round. Groups that
follow each other keep more servers busy: MoLink keeps N micro-batches in flight with
`(N - p) * compute >= p * transfer` for p stages, driven by one master. Here nobody drives: each
server sees how long a session takes to come round and what passes of fewer rows cost, and cuts its
passes so that all groups together fill most of that time. Pure; times are in seconds.
"""

from collections.abc import Callable, Iterable

BUSY_SHARE = 0.85
"""Of the time in which sessions come round, the passes over all groups take at most so much."""
IDLE_SHARE = 0.3
"""Passes are cut further only while a server is idle for so much of the time."""
MIN_IDLE_SHARE = 0.1
"""With less, they are joined again."""
MIN_GAIN = 0.05
"""A further group must make a pass shorter by so much."""
MIN_PROOF = 0.02
"""And must then bring sessions round so much sooner: what it costs others is not in our model."""
REST_S = 30.0
"""How long no further group is tried after one that did not."""
MEMORY_S = 1.0
"""A session that decoded so long ago is no longer expected."""
_WEIGHT = 0.1
"""Of the newest round, in the moving average."""
_PATIENCE_ROUNDS = 4
"""So many rounds' time passes between two changes."""


class ConvoyControl:
    """Told of each pass; asked before each."""

    def __init__(self, pass_s: Callable[[int], float]) -> None:
        """`pass_s(rows)`: what a pass over so many decode rows takes."""
        self._pass_s = pass_s
        self._seen: dict[bytes, float] = {}
        self._round_s = 0.0
        """Moving average of how long a session takes from one pass here to the next."""
        self._looked_at = 0.0
        self._busy_s = 0.0
        """Of all passes since then."""
        self._trial: tuple[int, float] | None = None
        """Sessions and round when the last group was added, until that has proved right."""
        self._rests_until = float("-inf")
        self.groups = 1

    def pass_ended(self, sessions: Iterable[bytes], seconds: float, now: float) -> None:
        """`sessions` had decode rows in the pass that ends now and took so long."""
        self._busy_s += seconds
        for session in sessions:
            before = self._seen.get(session)
            if before is not None and now - before <= MEMORY_S:
                weight = _WEIGHT if self._round_s else 1.0
                self._round_s += weight * (now - before - self._round_s)
            self._seen[session] = now

    def session_ended(self, session: bytes) -> None:
        self._seen.pop(session, None)

    def join(self) -> None:
        """All rows that are ready go together again."""
        self.groups, self._trial = 1, None

    def most_rows(self, now: float) -> int | None:
        """Of the next pass; None: all that are ready."""
        passed_s = now - self._looked_at
        if passed_s > _PATIENCE_ROUNDS * self._round_s:
            for session in [s for s, seen in self._seen.items() if now - seen > MEMORY_S]:
                del self._seen[session]
            self._choose(len(self._seen), 1.0 - self._busy_s / passed_s, now)
            self._looked_at, self._busy_s = now, 0.0
        if self.groups == 1:
            return None
        return -(-len(self._seen) // self.groups)

    def _choose(self, sessions: int, idle_share: float, now: float) -> None:
        """One group more or fewer, if that is better."""
        trial, self._trial = self._trial, None
        if sessions < 2 or not self._round_s:
            self.groups = 1
            return
        groups = self.groups = min(self.groups, sessions)
        if groups > 1 and (self._busy(sessions, groups) > 1.0 or idle_share < MIN_IDLE_SHARE):
            self.groups -= 1
        elif trial is not None and self._in_vain(trial, sessions):
            self.groups = max(1, groups - 1)
            self._rests_until = now + REST_S
        elif groups < sessions and idle_share >= IDLE_SHARE and now >= self._rests_until:
            now_s, then_s = self._group_s(sessions, groups), self._group_s(sessions, groups + 1)
            if then_s <= (1.0 - MIN_GAIN) * now_s and (
                self._busy(sessions, groups + 1) <= BUSY_SHARE
            ):
                self._trial = sessions, self._round_s
                self.groups += 1

    def _in_vain(self, trial: tuple[int, float], sessions: int) -> bool:
        """Whether the last group was added for nothing; not known if sessions came or went."""
        before, round_s = trial
        return before == sessions and self._round_s > (1.0 - MIN_PROOF) * round_s

    def _group_s(self, sessions: int, groups: int) -> float:
        return self._pass_s(-(-sessions // groups))

    def _busy(self, sessions: int, groups: int) -> float:
        """The part of a round that the passes of all groups take."""
        return groups * self._group_s(sessions, groups) / self._round_s
