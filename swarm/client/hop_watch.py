"""Which hops of a session are doubted: their link is down, perhaps not for good."""

from collections.abc import Callable, Iterable

from swarm.spans import PeerId

DOWN_S = 0.3
"""How long a link may be down before another way is looked for: a link that only lost its stream is
dialled again in less."""
STALLED_S = 1.0
"""Who was not asked for so long was asleep itself, and gives the links their time anew."""


class HopWatch:
    """Pure; `look` is called several times a second. Times in seconds of one clock."""

    def __init__(self) -> None:
        self.doubted: set[PeerId] = set()
        self._down_since: dict[PeerId, float] = {}
        self._looked_at = 0.0

    def look(self, hops: Iterable[PeerId], is_up: Callable[[PeerId], bool], now: float) -> None:
        """`is_up`: whether there is a link to a peer, and something comes over it."""
        if now - self._looked_at > STALLED_S:
            self._down_since.clear()
        self._looked_at = now
        for peer in hops:
            if is_up(peer):
                self._down_since.pop(peer, None)
                self.doubted.discard(peer)
            elif now - self._down_since.setdefault(peer, now) >= DOWN_S:
                self.doubted.add(peer)

    def forget(self) -> None:
        """The session has other hops now."""
        self.doubted.clear()
        self._down_since.clear()
