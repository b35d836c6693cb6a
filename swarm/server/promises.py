"""Servers that say where they will be soon: they are believed, but not for ever."""

from collections.abc import Iterable

from swarm.dht.records import ServerRecord
from swarm.routing.view import ServerState
from swarm.spans import PeerId, Span

BELIEVED_S = 900.0
"""So long may fetching, draining and loading take before others close the gap instead."""


class Promises:
    """Which servers announce the same future for too long; pure. Times are of one clock, in s."""

    def __init__(self) -> None:
        self._since: dict[PeerId, tuple[Span, float]] = {}
        self._now = 0.0

    def read(self, records: Iterable[ServerRecord], now: float) -> None:
        """The newest records."""
        self._now = now
        promised = {one.peer: span for one in records if (span := _promised(one)) is not None}
        self._since = {
            peer: self._since[peer]
            if peer in self._since and self._since[peer][0] == span
            else (span, now)
            for peer, span in promised.items()
        }

    @property
    def broken(self) -> set[PeerId]:
        """Servers that nobody should count on any more, neither where they are nor where they want
        to be."""
        return {p for p, (_, since) in self._since.items() if self._now - since > BELIEVED_S}


def _promised(record: ServerRecord) -> Span | None:
    if record.moving_to is not None:
        return record.moving_to
    return record.span if record.state is ServerState.JOINING else None
