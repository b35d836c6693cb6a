"""The few words that everyone shares: spans of blocks, peers and sessions."""

import re
from dataclasses import dataclass
from typing import NewType

from swarm.errors import BadSpanError

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58; for Ed25519 identities it contains the public key."""

SessionId = NewType("SessionId", bytes)
"""16 random bytes drawn by the client."""

_SPAN = re.compile(r"(\d{1,6}):(\d{1,6})")


@dataclass(frozen=True, order=True)
class Span:
    """A run of blocks, `start:end`, end exclusive, never empty."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise BadSpanError(f"{self.start}:{self.end} is not a run of blocks; write it as 0:20")

    @classmethod
    def parse(cls, text: str) -> "Span":
        """`0:20`. Raises BadSpanError for any other text."""
        match = _SPAN.fullmatch(text.strip())
        if match is None:
            raise BadSpanError(f"{text!r} is not a run of blocks; write it as 0:20")
        return cls(int(match[1]), int(match[2]))

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    def __contains__(self, block: int) -> bool:
        return self.start <= block < self.end

    def covers(self, other: "Span") -> bool:
        return self.start <= other.start and other.end <= self.end


def missing_spans(spans: list[Span], num_blocks: int) -> list[Span]:
    """The runs of `0:num_blocks` that no span covers, in order."""
    missing: list[Span] = []
    reached = 0
    for span in sorted(spans):
        if span.start > reached:
            missing.append(Span(reached, min(span.start, num_blocks)))
        reached = max(reached, span.end)
        if reached >= num_blocks:
            return missing
    if reached < num_blocks:
        missing.append(Span(reached, num_blocks))
    return missing
