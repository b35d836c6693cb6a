"""A snapshot of one model's servers: all that routing and placement look at."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from swarm.spans import PeerId, Span, missing_spans


class ServerState(StrEnum):
    """What a server says of itself."""

    JOINING = "joining"
    """Loading its blocks; it will serve them soon."""
    ONLINE = "online"
    DRAINING = "draining"
    """Finishing its sessions; takes no new ones."""
    OFFLINE = "offline"


@dataclass(frozen=True, order=True)
class Numerics:
    """How a server computes; one chain has one kind unless the user says otherwise."""

    dtype: str
    """As torch names it: `float32`, `bfloat16`."""
    quantisation: str = "none"
    kernel_class: str = "cpu"
    """Servers of one class agree to the last bits: `cpu`, `cuda`."""

    def __str__(self) -> str:
        if self.quantisation == "none":
            return f"{self.dtype} on {self.kernel_class}"
        return f"{self.dtype} ({self.quantisation}) on {self.kernel_class}"


@dataclass(frozen=True)
class ServerView:
    """One server as its newest record shows it."""

    peer: PeerId
    span: Span
    state: ServerState
    checkpoint: str
    numerics: Numerics
    decode_ms_per_block: float
    """Of one token in one block; 0 while it is not measured."""
    prefill_tokens_per_s: float
    """Through the whole span; 0 while it is not measured."""
    cache_tokens_free: int
    cache_tokens_total: int
    queue_wait_ms: float
    """How long a step waits before its compute pass begins."""
    sessions: int = 0


@dataclass(frozen=True)
class SwarmView:
    """All servers of one checkpoint at one moment."""

    checkpoint: str
    num_blocks: int
    servers: tuple[ServerView, ...]

    def online(self, avoid: Iterable[PeerId] = ()) -> tuple[ServerView, ...]:
        """The servers that take sessions of this checkpoint now, without those to avoid."""
        avoided = frozenset(avoid)
        return tuple(
            server
            for server in self.servers
            if server.state is ServerState.ONLINE
            and server.checkpoint == self.checkpoint
            and server.span.end <= self.num_blocks
            and server.peer not in avoided
        )

    def missing(self, avoid: Iterable[PeerId] = ()) -> list[Span]:
        """The runs of blocks that no server online holds, in order."""
        return missing_spans([server.span for server in self.online(avoid)], self.num_blocks)
