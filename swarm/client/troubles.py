"""Which servers failed lately: left out for a while that grows with each failure, and fades."""

from collections.abc import Callable
from dataclasses import dataclass

from swarm.spans import PeerId

FIRST_S = 2.0
"""How long a server is left out after its first failure."""
MAX_S = 60.0
_MAX_FAILURES = 16
"""More count no more: who cannot be reached at all is tried, and fails, once a minute for days."""
FADE_S = 60.0
"""So long after it was let in again, half of its failures are forgotten."""
_FORGOTTEN_S = FADE_S * _MAX_FAILURES.bit_length()
"""And so long after it, all of them."""


@dataclass
class _Record:
    failures: int
    until: float


class Troubles:
    """What a client's sessions tell each other about servers. Times are of one clock, in s.

    Only the server that failed is left out, and not for long: `FIRST_S`, then twice as long for
    each further failure up to `MAX_S`. A session that opens there forgives everything. A server
    that may be frozen is left out until something comes from it.
    """

    def __init__(self) -> None:
        self._records: dict[PeerId, _Record] = {}
        self._suspected: dict[PeerId, float] = {}

    def failed(self, peer: PeerId, now: float) -> None:
        """Failures that are told while the server is left out already are one failure."""
        known = self._records.get(peer)
        if known is not None and now < known.until:
            return
        for other, record in list(self._records.items()):
            if now - record.until >= _FORGOTTEN_S:  # anybody may announce servers without end
                del self._records[other]
        failures = 1
        if known is not None:
            failures += known.failures >> int((now - known.until) / FADE_S)
            failures = min(failures, _MAX_FAILURES)
        until = now + min(MAX_S, FIRST_S * 2 ** (failures - 1))
        self._records[peer] = _Record(failures, until)

    def suspect(self, peer: PeerId, since: float) -> None:
        """It was asked at `since`, and keeps us waiting: it is slow, or dead."""
        self._suspected[peer] = since

    def suspected(self, now: float, heard_s: Callable[[PeerId], float | None]) -> set[PeerId]:
        """Those from whom nothing has come since they were suspected.

        `heard_s`: how long ago something came from a server; None: its link is gone, so it has
        failed. From whom something came, was only slow.
        """
        for peer, since in list(self._suspected.items()):
            ago_s = heard_s(peer)
            if ago_s is None or now - ago_s > since:
                del self._suspected[peer]
            if ago_s is None:
                self.failed(peer, now)
        return set(self._suspected)

    def served(self, peer: PeerId) -> None:
        self._records.pop(peer, None)
        self._suspected.pop(peer, None)

    def left_out(self, now: float) -> set[PeerId]:
        """The servers that are not to be tried now."""
        return {peer for peer, record in self._records.items() if now < record.until}
