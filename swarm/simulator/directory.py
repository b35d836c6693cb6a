"""The directory on the virtual clock: each server's newest record, until it expires."""

from swarm.dht.records import RECORD_LIFETIME_S
from swarm.routing.view import CacheUnit, ServerView, SwarmView
from swarm.simulator.clock import Clock
from swarm.spans import PeerId


class SimulatedDirectory:
    """Snapshots keep the objects of servers of which nothing new is known."""

    def __init__(self, clock: Clock, checkpoint: str, num_blocks: int, unit: CacheUnit) -> None:
        self._clock = clock
        self._checkpoint = checkpoint
        self._num_blocks = num_blocks
        self._unit = unit
        self._records: dict[PeerId, tuple[ServerView, float]] = {}
        self._snapshot: SwarmView | None = None

    def announce(self, view: ServerView) -> None:
        """A server's record has come."""
        known = self._records.get(view.peer)
        if known is None or known[0] != view:
            self._snapshot = None
        else:
            view = known[0]
        self._records[view.peer] = (view, self._clock.now + RECORD_LIFETIME_S)

    def withdraw(self, peer: PeerId) -> None:
        """A server has said that it leaves."""
        if self._records.pop(peer, None) is not None:
            self._snapshot = None

    def snapshot(self) -> SwarmView:
        """What whoever looks up the servers now finds."""
        now = self._clock.now
        old = [peer for peer, (_, expires) in self._records.items() if expires <= now]
        for peer in old:
            self.withdraw(peer)
        if self._snapshot is None:
            servers = tuple(view for view, _ in self._records.values())
            self._snapshot = SwarmView(self._checkpoint, self._num_blocks, servers, self._unit)
        return self._snapshot
