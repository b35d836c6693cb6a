"""How much memory the backups of all sessions take together, and which are given up for others."""

from swarm.sessions.hop import HopSession

MIB = 1 << 20
MIN_MIB = 64
SHARE_OF_CACHE = 8
"""What is pushed on for a token takes far less than its keys and values in all blocks of a span."""


def backup_bytes(asked_mib: int | None, cache_bytes: int) -> int:
    """The limit in bytes: what was asked for, or else a part of the size of the cache."""
    if asked_mib is not None:
        return asked_mib * MIB
    return max(MIN_MIB * MIB, cache_bytes // SHARE_OF_CACHE)


class BackupMemory:
    """Keeps the backups of all sessions below a limit, and the last answers of those without one.

    Whole sessions lose theirs, the largest first: half a backup is useless. What such a session has
    lost is refilled from farther back when a server behind this one fails, at worst from its
    client's own inputs.
    """

    def __init__(self, limit_bytes: int) -> None:
        """`limit_bytes`: 0 keeps no backups at all."""
        self.limit_bytes = limit_bytes
        self.total_bytes = 0
        self.evictions = 0
        """Backups given up so far."""
        self._sizes: dict[HopSession, int] = {}

    def changed(self, hop: HopSession) -> None:
        """The session may have more or less in its backup now; it may lose it here."""
        size = hop.backup_bytes
        self.total_bytes += size - self._sizes.get(hop, 0)
        self._sizes[hop] = size
        while self.total_bytes > self.limit_bytes:
            largest = max(self._sizes, key=self._sizes.__getitem__)
            self.evictions += largest.evict_backup()
            self.total_bytes -= self._sizes[largest]
            self._sizes[largest] = 0

    def forget(self, hop: HopSession) -> None:
        """The session has ended."""
        self.total_bytes -= self._sizes.pop(hop, 0)
