"""Everything that can go wrong, as one tree.

    SwarmError
      UsageError                 the caller can mend it; programs end with exit code 2
        BadSpanError             blocks outside the model, or not a run of blocks
        ModelNotFoundError       no such folder, file or hub name
        NotServedError           a transformers feature that the swarm does not serve
        AddressError             a malformed address, or a port that is in use
        MemoryShortError         the machine cannot hold what was asked for
      CheckpointError            files that are damaged, or not the swarm's checkpoint
      MissingBlocksError         no server online for some blocks
      PeerError                  one peer, or the way to it
        UnreachablePeerError     cannot be dialled, or its link is lost
        ProtocolVersionError     speaks another version of the protocol
        FramingError             sent bytes that are no frame; its link is closed
        PeerTimeoutError         did not answer within the deadline
        LinkFullError            more waits to be sent to it than its link may hold
        DaemonError              our own libp2p daemon cannot be started
      SessionError               one session, at one hop
        RefusedError             a hop did not take the session: its blocks, its quota, its state
        CacheFullError           no room for the session's K/V within the deadline
        SessionLostError         a hop no longer knows the session
        StepRejectedError        a hop refused a step: shape, dtype, slots, order
        NotFiniteError           a hop produced NaN or infinity
        SessionClosedError       used after it was closed
        SessionFullError         more tokens than the session reserved
      RecordError                a directory record that is forged, stale or malformed

An error says what happened, to which peer, session and blocks, and what to do next.
"""


class SwarmError(Exception):
    """Base of every error that the swarm raises on purpose."""


class UsageError(SwarmError):
    """The caller asked for something that cannot be; the message says what can."""


class BadSpanError(UsageError, ValueError):
    """Blocks outside the model, or text that is no run of blocks."""


class ModelNotFoundError(UsageError, FileNotFoundError):
    """No folder, file or hub name like this."""


class NotServedError(UsageError, NotImplementedError):
    """A transformers feature that the swarm does not serve."""


class AddressError(UsageError):
    """A malformed address, or one that is already in use."""


class MemoryShortError(UsageError, MemoryError):
    """The machine cannot hold what was asked for."""


class CheckpointError(SwarmError):
    """A damaged checkpoint, or one that is not the swarm's."""

    def __init__(self, message: str, peer: str | None = None) -> None:
        super().__init__(message)
        self.peer = peer
        """The server that said so, if it was one."""


class MissingBlocksError(SwarmError):
    """No server is online for some blocks of the model."""

    def __init__(self, message: str, blocks: tuple[str, ...]) -> None:
        super().__init__(message)
        self.blocks = blocks
        """The missing runs of blocks as `start:end`."""


class PeerError(SwarmError):
    """Something is wrong with one peer or with the way to it."""

    def __init__(self, message: str, peer: str | None = None) -> None:
        super().__init__(message)
        self.peer = peer


class UnreachablePeerError(PeerError):
    """The peer cannot be dialled, or its link is lost."""


class ProtocolVersionError(PeerError):
    """The peer speaks another version of the protocol."""


class FramingError(PeerError):
    """The peer sent bytes that are no valid frame; the link is closed."""


class PeerTimeoutError(PeerError, TimeoutError):
    """The peer did not answer within the deadline."""


class LinkFullError(PeerError):
    """More waits to be sent to the peer than its link may hold; send less, or later."""


class DaemonError(PeerError):
    """Our own libp2p daemon cannot be started."""


class SessionError(SwarmError):
    """A session failed at one hop; other sessions are not touched."""

    def __init__(
        self,
        message: str,
        *,
        session: bytes | None = None,
        peer: str | None = None,
        blocks: str | None = None,
    ) -> None:
        super().__init__(message)
        self.session = session
        self.peer = peer
        self.blocks = blocks


class RefusedError(SessionError):
    """A hop did not take the session: other blocks, a quota, draining, a grant it cannot accept."""


class CacheFullError(SessionError):
    """No room for the session's K/V within the deadline."""


class SessionLostError(SessionError):
    """A hop no longer knows the session, or can no longer be reached."""


class StepRejectedError(SessionError):
    """A hop refused a step because of its shape, dtype, slots or order."""


class NotFiniteError(SessionError):
    """A hop produced NaN or infinity from sound input."""


class SessionClosedError(SessionError):
    """The session was used after it had been closed."""


class SessionFullError(SessionError):
    """More tokens than the session reserved when it was opened."""


class RecordError(SwarmError):
    """A directory record that is forged, stale or malformed."""
