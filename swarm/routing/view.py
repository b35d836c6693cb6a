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
    quantization: str = "none"
    kernel_class: str = "cpu"
    """Servers of one class agree to the last bits: `cpu`, `cuda`."""

    @property
    def quantized(self) -> bool:
        return self.quantization != "none"

    def __str__(self) -> str:
        if not self.quantized:
            return f"{self.dtype} on {self.kernel_class}"
        return f"{self.dtype} ({self.quantization}) on {self.kernel_class}"


class CacheUnit(StrEnum):
    """What `cache_tokens_free` and `cache_tokens_total` count, and a session reserves."""

    SPAN = "span"
    """A token in all blocks of the server's span, whichever of them a session uses."""
    BLOCK = "block"
    """A token in one block; a session pays for the blocks that it uses."""


@dataclass(frozen=True)
class Release:
    """Cache that a server expects back."""

    after_s: float
    tokens: int
    """In the view's `CacheUnit`."""


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
    decode_fixed_ms: float = 0.0
    """Of a decode pass, beside `decode_ms_per_block` for each block; 0 while it is not measured."""
    decode_row_ms_per_block: float = 0.0
    """By which each further row lengthens a block of a decode pass."""
    releases: tuple[Release, ...] = ()
    """When cache comes back, as far as it is known (planners and simulations know)."""
    moving_to: Span | None = None
    """Where it is about to move; None: it stays."""
    may_move: bool = False
    """Whether it may move to other blocks now, when they are needed."""


@dataclass(frozen=True)
class SwarmView:
    """All servers of one checkpoint at one moment."""

    checkpoint: str
    num_blocks: int
    servers: tuple[ServerView, ...]
    cache_unit: CacheUnit = CacheUnit.SPAN

    def cache_needed(self, server: ServerView, tokens: int, blocks: int) -> int:
        """What a session of `tokens` that uses `blocks` of `server`'s reserves there."""
        return tokens * blocks if self.cache_unit is CacheUnit.BLOCK else tokens

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
