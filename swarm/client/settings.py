"""What a user may set about the way to the swarm; every default works."""

from dataclasses import dataclass
from math import inf

from swarm.errors import UsageError
from swarm.sessions.messages import (
    MAX_LENGTH,
    MAX_LIFETIME_S,
    MAX_STEP_TOKENS,
    MAX_UNANSWERED,
)


@dataclass(frozen=True)
class ClientSettings:
    """Times in seconds."""

    startup_timeout_s: float = 30.0
    """To start the libp2p daemon and join the swarm."""
    connect_timeout_s: float = 8.0
    """To connect to one server."""
    open_timeout_s: float = 60.0
    """To open a session: finding a route, trying others, waiting in line for room."""
    missing_timeout_s: float = 5.0
    """How long to look again when no server is online for some blocks."""
    step_timeout_s: float = 60.0
    """How long the servers may be silent while an answer is awaited; slow ones by up to four
    minutes longer."""
    repair_timeout_s: float = 30.0
    """How long other servers are looked for when a running session has lost some."""
    link_grace_s: float = 6.0
    """How long a broken link to a server is tried again before its sessions are lost."""
    directory_refresh_s: float = 10.0
    """Age at which the list of servers is looked up again."""
    session_lifetime_s: float = 24 * 3600.0
    """How long servers may keep a session; at most seven days."""
    prefill_chunk_tokens: int | None = None
    """Prompts travel in pieces of so many tokens, so that the servers work at the same time; None:
    32 to 256 of them, by the prompt and the route."""
    window: int = 8
    """Most pieces of a prompt on their way at once."""
    continuation_tokens: int = 512
    """Room of each row beyond the input when nothing says how long a cache will grow: a `forward()`
    outside of sessions, an assistant. Where nobody has that much room, what the input needs is
    reserved; a cache that is used up moves to a longer session, computed again from its inputs."""
    mix_numerics: bool = False
    """Whether one route may have servers that compute differently (dtype, quantization)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_s") and not 0 < value < inf:
                raise UsageError(f"{name} is {value}; give a number of seconds greater than 0")
        if self.session_lifetime_s > MAX_LIFETIME_S:
            raise UsageError(
                f"session_lifetime_s is {self.session_lifetime_s:g}; servers keep a session for at "
                f"most {MAX_LIFETIME_S:g} s"
            )
        chunk = self.prefill_chunk_tokens
        if chunk is not None and not 1 <= chunk <= MAX_STEP_TOKENS:
            raise UsageError(f"prefill_chunk_tokens must be in 1..{MAX_STEP_TOKENS}")
        if not 0 <= self.continuation_tokens <= MAX_LENGTH:
            raise UsageError(f"continuation_tokens must be in 0..{MAX_LENGTH}")
        if not 1 <= self.window <= MAX_UNANSWERED:
            raise UsageError(f"window must be in 1..{MAX_UNANSWERED}")
