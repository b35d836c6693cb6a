"""What costs its sender little and us some work is counted, and who sends too much of it waits."""

import logging

from swarm.spans import PeerId
from swarm.wire.connection import Connection
from swarm.wire.rate import TokenBucket

logger = logging.getLogger(__name__)

SHORT_FRAGMENT_BYTES = 512
"""In the middle of a message, shorter fragments are counted: an honest peer cuts few of them."""


class SmallFrames:
    """One link's count. Everything still comes, and in order, but it is read more slowly."""

    def __init__(self, peer: PeerId, bucket: TokenBucket) -> None:
        self._peer = peer
        self._bucket = bucket
        self._acks_due = 0
        """DATA frames that we sent and that no ACK has followed yet."""
        self._throttled = False

    def data_sent(self) -> None:
        """An ACK of the peer's is for nothing."""
        self._acks_due += 1

    def ack(self, connection: Connection | None, now: float) -> None:
        """Counted unless a DATA frame of ours is its cause."""
        if self._acks_due:
            self._acks_due -= 1
        else:
            self.count(connection, now)

    def count(self, connection: Connection | None, now: float) -> None:
        """One has come over `connection`."""
        pause_s = self._bucket.take(now)
        if pause_s and connection is not None:
            connection.pause(pause_s)
            if not self._throttled:
                self._throttled = True
                logger.warning("%s sends too many small messages; it is slowed down", self._peer)
