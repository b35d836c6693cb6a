"""What passes and hops take: the cost model of planners, routers and the simulator."""

from dataclasses import dataclass
from enum import StrEnum

from swarm.errors import UsageError


class ChainMode(StrEnum):
    """Which way activations take from one server to the next."""

    PUSH = "push"
    """Each server sends to the next one: a ring of one-way delays."""
    RELAY = "relay"
    """Through the client: a round trip with every server."""


@dataclass(frozen=True)
class ServerSpeed:
    """What one server's passes take, in seconds.

    A block of a decode pass with `n` rows takes `max(block_s, n * row_s) + (n - 1) * extra_row_s +
    context_s * (cached tokens of all rows)`: a roofline (weights are read once, each row is
    computed), plus what a measured slope says.
    """

    pass_s: float
    """Of a pass, however many blocks and rows it has."""
    block_s: float
    """Of a block in a decode pass with one row."""
    row_s: float = 0.0
    extra_row_s: float = 0.0
    context_s: float = 0.0
    """Per cached token of context."""
    prefill_block_s: float = 0.0
    """Of a block in a prefill pass, beside its tokens."""
    prefill_token_s: float = 0.0
    """Of a prompt's token in a block."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise UsageError(f"{name} = {value} s; a server's times are at least 0 and finite")

    def decode_s(self, blocks: int, rows: int = 1, context_tokens: int = 0) -> float:
        """One decode pass over `blocks`; `context_tokens`: cached ones of all its rows."""
        block = max(self.block_s, rows * self.row_s) + (rows - 1) * self.extra_row_s
        return self.pass_s + blocks * (block + context_tokens * self.context_s)

    def prefill_s(self, blocks: int, tokens: int) -> float:
        """One prefill pass of `tokens` over `blocks`."""
        return self.pass_s + blocks * self.prefill_per_block_s(tokens)

    def prefill_per_block_s(self, tokens: int) -> float:
        """`tau^I` of Sun et al.: one block, a whole prompt."""
        return self.prefill_block_s + tokens * self.prefill_token_s


@dataclass(frozen=True)
class HopOverhead:
    """What one more hop costs beside compute, delay and bytes, in seconds."""

    decode_s: float = 0.002
    prefill_s: float = 0.002
    prefill_token_s: float = 0.0
