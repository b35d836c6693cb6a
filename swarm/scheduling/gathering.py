"""When a free engine should wait for more decode rows before it begins a pass.

A pass over one row takes nearly as long as one over eight, since both read all weights. A server
with cores of its own need not wait: while it computes, the next rows come. Where several busy
processes share the cores, as when one machine hosts many stages, a pass of few rows takes the
time that others need to bring more. There the pass waits for half of the sessions, and hardly
anything is lost meanwhile, since the others have work for the cores. A group that has met stays
together through all stages, so two groups take turns; a group's wait is counted in passes and not
in steps, because what one stage waits lengthens the steps of all.
"""

from collections.abc import Iterable

CROWDED = 1.25
"""Wall time of passes over their processor time, from which on the cores count as shared."""
AT_EASE = 1.05
"""The same, below which they count as our own again. Groups that meet crowd the cores less."""
PATIENCE_PASSES = 2.0
"""How many passes' time to wait at most."""
MEMORY_S = 1.0
"""A session that decoded so long ago is no longer expected."""
_WEIGHT = 0.2
"""Of the newest pass, in the moving averages."""


class Gathering:
    """Pure: told of each pass with decode rows, asked before each. Times are in seconds."""

    def __init__(self) -> None:
        self._crowding = 1.0
        self._crowded = False
        self._pass_s = 0.0
        """Moving average of a pass's wall time."""
        self._seen: dict[bytes, float] = {}

    def pass_ended(
        self, sessions: Iterable[bytes], wall_s: float, processor_s: float, now: float
    ) -> None:
        """`sessions` had decode rows in a pass that took `wall_s`, and so much of this thread's
        processor time."""
        for session in sessions:
            self._seen[session] = now
        ratio = wall_s / processor_s if processor_s > 0 else 1.0
        self._crowding += _WEIGHT * (min(ratio, 10.0) - self._crowding)
        self._crowded = self._crowding >= (AT_EASE if self._crowded else CROWDED)
        self._pass_s += (_WEIGHT if self._pass_s else 1.0) * (wall_s - self._pass_s)

    def session_ended(self, session: bytes) -> None:
        self._seen.pop(session, None)

    @property
    def crowded(self) -> bool:
        """Whether other processes want the cores, too."""
        return self._crowded

    def expected(self, now: float) -> int:
        """Sessions that decode at present."""
        for session in [s for s, seen in self._seen.items() if now - seen > MEMORY_S]:
            del self._seen[session]
        return len(self._seen)

    def wait_s(self, ready: int, waited_s: float, now: float) -> float:
        """How long to wait on; 0: begin. `ready` sessions wait, the first since `waited_s`."""
        if not self._crowded or 2 * ready >= self.expected(now):
            return 0.0
        return max(0.0, PATIENCE_PASSES * self._pass_s - waited_s)
