"""What became of each request."""

from dataclasses import dataclass, field
from enum import StrEnum

from swarm.spans import PeerId


class Outcome(StrEnum):
    """How a request ended."""

    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True)
class Request:
    """One request of one client; times in seconds since the simulation began."""

    number: int
    client: PeerId
    arrived: float
    prompt_tokens: int
    output_tokens: int
    """That it will generate; nobody knows before."""
    opened: float | None = None
    first: float | None = None
    """When its first token was there."""
    ended: float | None = None
    tokens: int = 0
    """That it has."""
    repairs: int = 0
    moves: int = 0
    """To better routes."""
    longest_gap_s: float = 0.0
    """Between two of its tokens."""
    outcome: Outcome | None = None
    failure: str = ""
    """The kind of error that ended it."""
    why: str = ""
    """That error, in words."""
    hops: list[int] = field(default_factory=list)
    """Of each of its routes."""

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, with every wait."""
        return None if self.first is None else self.first - self.arrived

    @property
    def tpot_s(self) -> float | None:
        """Mean time between two tokens."""
        if self.first is None or self.ended is None or self.tokens < 2:
            return None
        return (self.ended - self.first) / (self.tokens - 1)

    @property
    def response_s(self) -> float | None:
        """From its arrival to its last token."""
        return None if self.ended is None else self.ended - self.arrived
