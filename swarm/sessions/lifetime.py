"""How long a hop keeps a session: lease, lifetime, and grace for a lost client."""

LEASE_S = 8.0
"""How long a hold lasts without `Commit`: longer than a client waits for the other hops' answers
(`opening.ANSWER_S`), with time for the commit to travel."""
GRACE_S = 10.0
"""How long a session outlives the loss of its client's link."""


class Lifetime:
    """Three deadlines; times are in seconds of any one clock."""

    def __init__(self, now: float, lifetime_s: float, lease_s: float, grace_s: float) -> None:
        self.expires = now + lifetime_s
        self._lifetime_s = lifetime_s
        self._lease_ends: float | None = now + lease_s
        self._grace_s = grace_s
        self._grace_ends: float | None = None
        self._lost_why = ""

    @property
    def deadline(self) -> float:
        """When the first of them passes."""
        others = [end for end in (self._lease_ends, self._grace_ends) if end is not None]
        return min(self.expires, *others) if others else self.expires

    def committed(self) -> None:
        self._lease_ends = None

    def client_lost(self, why: str, now: float) -> None:
        self._grace_ends, self._lost_why = now + self._grace_s, why

    def client_seen(self) -> None:
        self._grace_ends = None

    def expired(self, now: float) -> str | None:
        """Why the session has come to the end of its lifetime; its client is to be told."""
        if now < self.expires:
            return None
        return f"its lifetime of {self._lifetime_s:g} s is over"

    def forsaken(self, now: float) -> str | None:
        """Why nobody needs the session any more."""
        if self._lease_ends is not None and now >= self._lease_ends:
            return "held, but not committed in time"
        if self._grace_ends is not None and now >= self._grace_ends:
            return f"its client is gone: {self._lost_why}"
        return None
