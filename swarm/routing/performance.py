"""What passes, chains and requests take: the cost model of planners, routers and the simulator."""

from collections.abc import Sequence
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


@dataclass(frozen=True)
class ChainHop:
    """One hop of a chain as its times are predicted."""

    blocks: int
    speed: ServerSpeed
    delay_s: float
    """One way, to this hop: from the one before (push; from the client if it is the first), or
    from the client (relay)."""
    bytes_per_s: float = float("inf")
    """Of the way to this hop."""
    wait_s: float = 0.0
    """Of a step before its pass begins."""
    rows: int = 1
    """Rows of a decode pass here, ours among them."""
    cache_tokens: float = float("inf")
    """Room for this chain's sessions in the blocks that it uses."""


@dataclass(frozen=True)
class ChainTimes:
    """What a chain does for one request, and how much it can do."""

    ttft_s: float
    """From sending the prompt until the first token is there, when nothing is to be waited for."""
    tpot_s: float
    """Between two tokens."""
    tokens_per_s: float
    """Of all sessions, when the slowest hop is always busy with passes of its `rows`."""
    sessions: float
    """That fit in the caches at once."""

    def request_s(self, output_tokens: int) -> float:
        """The whole request."""
        return self.ttft_s + max(0, output_tokens - 1) * self.tpot_s


def predict_chain(
    hops: Sequence[ChainHop],
    *,
    back_delay_s: float,
    prompt_tokens: int,
    output_tokens: int,
    activation_bytes: float,
    mode: ChainMode = ChainMode.PUSH,
    overhead: HopOverhead | None = None,
    chunk_tokens: int | None = None,
    back_bytes_per_s: float = float("inf"),
) -> ChainTimes:
    """Times and capacity of a chain.

    `back_delay_s`: one way from the last hop to the client (push only). `activation_bytes`: of one
    token. `chunk_tokens`: prompts travel in chunks of this size, and hops work on different chunks
    at the same time; None: a hop starts when it has the whole prompt (as in the papers).

    One token: `sum(delay + bytes / bandwidth + wait + overhead + pass)` (Sun et al., arXiv
    2512.21884, section II). A prompt in chunks: all stages once for the first chunk, and once the
    slowest stage for each further one.
    """
    overhead = overhead or HopOverhead()
    if not hops:
        raise UsageError("a chain without hops; it needs a server for every block")
    relay = mode is ChainMode.RELAY
    trips = 2 if relay else 1
    chunk = min(prompt_tokens, chunk_tokens or prompt_tokens)
    further = -(-prompt_tokens // chunk) - 1 if chunk else 0
    ttft = tpot = 0.0 if relay else back_delay_s + activation_bytes / back_bytes_per_s
    slowest, rate = 0.0, float("inf")
    for hop in hops:
        fixed = trips * hop.delay_s + hop.wait_s
        token_s = activation_bytes / hop.bytes_per_s
        decode = hop.speed.decode_s(hop.blocks, hop.rows)
        prefill = hop.speed.prefill_s(hop.blocks, chunk) + overhead.prefill_token_s * chunk
        tpot += fixed + trips * token_s + overhead.decode_s + decode
        ttft += fixed + trips * chunk * token_s + overhead.prefill_s + prefill
        slowest = max(slowest, prefill, trips * chunk * token_s)
        rate = min(rate, hop.rows / decode if decode else float("inf"))
    tokens = max(1, prompt_tokens + output_tokens)
    sessions = min(hop.cache_tokens for hop in hops) // tokens
    return ChainTimes(ttft + further * slowest, tpot, rate, sessions)
