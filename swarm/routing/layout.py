"""Who hosts which blocks: what placements decide."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from swarm.errors import BadSpanError, MissingBlocksError
from swarm.routing.fitting import fitting
from swarm.routing.inventory import Inventory, Workload
from swarm.routing.performance import ServerSpeed
from swarm.routing.view import CacheUnit, Numerics, ServerState, ServerView, SwarmView
from swarm.sessions.messages import Hop
from swarm.spans import PeerId, Span, missing_spans

PLANNED_CHECKPOINT = "planned"
"""Of the servers of a view that was made from a layout."""


@dataclass(frozen=True)
class PlannedChain:
    """A chain over all blocks with room of its own."""

    hops: tuple[Hop, ...]
    capacity: int
    """Sessions that it takes at once."""
    service_s: float
    """A request's time on it, without waiting."""


@dataclass(frozen=True)
class Layout:
    """The span of each machine that hosts something."""

    num_blocks: int
    spans: Mapping[PeerId, Span]
    chains: tuple[PlannedChain, ...] = ()
    """For those placements that plan chains."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """Figures of the placement itself, by name: `bound_s`, `gap`, `objective_s`, `sessions` ..."""

    def __post_init__(self) -> None:
        for peer, span in self.spans.items():
            if span.end > self.num_blocks:
                raise BadSpanError(f"{peer} hosts {span} of a model with {self.num_blocks} blocks")

    def hosts(self) -> list[int]:
        """How many machines hold each block."""
        counts = [0] * self.num_blocks
        for span in self.spans.values():
            for block in range(span.start, span.end):
                counts[block] += 1
        return counts

    def missing(self) -> list[Span]:
        """The runs of blocks that nobody hosts."""
        return missing_spans(list(self.spans.values()), self.num_blocks)

    def check_covers(self) -> "Layout":
        """Itself. Raises MissingBlocksError if a block has no host."""
        missing = self.missing()
        if missing:
            runs = ", ".join(map(str, missing))
            raise MissingBlocksError(
                f"no machine hosts blocks {runs} of {self.num_blocks}; add machines, or ask for "
                "fewer sessions",
                tuple(map(str, missing)),
            )
        return self


class Placement(Protocol):
    """Decides who hosts which blocks."""

    def place(self, inventory: Inventory, workload: Workload) -> Layout:
        """A layout that covers every block.

        Raises MemoryShortError with what is missing when the machines cannot hold the model.
        """
        ...


def cache_tokens(inventory: Inventory, peer: PeerId, span: Span) -> int:
    """Room for tokens of one block beside the weights of `span`."""
    model = inventory.model
    if model.cache_bytes_per_token <= 0:
        return 1 << 40
    weights = model.block_bytes * len(span)
    return int(fitting(inventory.machine(peer).memory_bytes, weights, model.cache_bytes_per_token))


def server_view(
    inventory: Inventory,
    peer: PeerId,
    span: Span,
    prompt_tokens: int,
    *,
    checkpoint: str = PLANNED_CHECKPOINT,
    unit: CacheUnit = CacheUnit.BLOCK,
    state: ServerState = ServerState.ONLINE,
) -> ServerView:
    """An idle server as it would announce itself; its prefill rate is of a prompt like the given.

    `decode_ms_per_block` is of a pass with one row; what a second row adds stands beside it.
    """
    speed: ServerSpeed = inventory.machine(peer).speed
    tokens = cache_tokens(inventory, peer, span)
    tokens = tokens if unit is CacheUnit.BLOCK else tokens // len(span)
    per_token_s = speed.prefill_per_block_s(prompt_tokens) * len(span) / max(1, prompt_tokens)
    one, two = (speed.decode_s(1, rows) for rows in (1, 2))
    return ServerView(
        peer=peer,
        span=span,
        state=state,
        checkpoint=checkpoint,
        numerics=Numerics("planned"),
        decode_ms_per_block=1e3 * (one - speed.pass_s),
        prefill_tokens_per_s=1 / per_token_s if per_token_s > 0 else 0.0,
        cache_tokens_free=tokens,
        cache_tokens_total=tokens,
        queue_wait_ms=0.0,
        decode_fixed_ms=1e3 * speed.pass_s,
        decode_row_ms_per_block=1e3 * (two - one),
    )


def view_of(
    inventory: Inventory,
    layout: Layout,
    prompt_tokens: int,
    *,
    unit: CacheUnit = CacheUnit.BLOCK,
) -> SwarmView:
    """The snapshot that clients of an idle swarm with this layout would see."""
    servers = tuple(
        server_view(inventory, peer, span, prompt_tokens, unit=unit)
        for peer, span in layout.spans.items()
    )
    return SwarmView(PLANNED_CHECKPOINT, layout.num_blocks, servers, unit)
