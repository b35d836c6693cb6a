"""Which servers failed lately: left out for a while that grows with each failure, and fades."""

from dataclasses import dataclass

from swarm.spans import PeerId

FIRST_S = 2.0
"""How long a server is left out after its first failure."""
MOST_S = 60.0
FADE_S = 60.0
"""After so long without a failure, half of a server's failures are forgotten."""


@dataclass
class _Record:
    failures: int
    failed_at: float
    until: float


class Troubles:
    """What a client's sessions tell each other about servers. Times are of one clock, in s.

    Only the server that failed is left out, and not for long: `FIRST_S`, then twice as long for
    each further failure up to `MOST_S`. A session that opens there forgives everything.
    """

    def __init__(self) -> None:
        self._records: dict[PeerId, _Record] = {}

    def failed(self, peer: PeerId, now: float) -> None:
        """Failures that are told while the server is left out already are one failure."""
        known = self._records.get(peer)
        if known is not None and now < known.until:
            return
        failures = 1
        if known is not None:
            failures += known.failures >> int((now - known.failed_at) / FADE_S)
        until = now + min(MOST_S, FIRST_S * 2 ** (failures - 1))
        self._records[peer] = _Record(failures, now, until)

    def served(self, peer: PeerId) -> None:
        self._records.pop(peer, None)

    def left_out(self, now: float) -> set[PeerId]:
        """The servers that are not to be tried now."""
        return {peer for peer, record in self._records.items() if now < record.until}
