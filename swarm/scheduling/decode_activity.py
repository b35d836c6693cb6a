"""Whether decode steps pass at present, so that everything else has to keep its queues short."""

ACTIVE_S = 2.0
"""How long after a decode step the next one is expected."""


class DecodeActivity:
    """Shared by all that compete for the same line. Times are in seconds."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def seen(self, now: float) -> None:
        """A decode step has passed."""
        self._last = now

    def is_active(self, now: float) -> bool:
        return now - self._last <= ACTIVE_S
