"""How fast something may come: a bucket of tokens that fills with time."""


class TokenBucket:
    """`per_s` tokens a second, at most `burst` at once; who takes more has to wait."""

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._filled_at = now

    def take(self, now: float) -> float:
        """Takes one; for how many seconds no further one should be taken, mostly 0."""
        filled = self._tokens + (now - self._filled_at) * self._per_s
        self._tokens = min(self._burst, filled) - 1.0
        self._filled_at = now
        return max(0.0, -self._tokens / self._per_s)
