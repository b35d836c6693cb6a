"""What the steps over a route are expected to take, by what its servers say of themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarm.client.routes import ClientRouter
from swarm.client.target import Target
from swarm.scheduling.prefill_chunks import MAX_TOKENS
from swarm.sessions.messages import Hop
from swarm.sessions.rerouting import REFILL_TOKENS
from swarm.spans import PeerId

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm


@dataclass(frozen=True)
class Expected:
    """In seconds; 0 where a server of the route is not known."""

    step_s: float
    """A decode step."""
    chunk_s: float
    """The largest piece of a prompt, or of what new servers are filled with, through the chain."""


def expected(swarm: "Swarm", target: Target, router: ClientRouter, hops: Sequence[Hop]) -> Expected:
    """By the records that were read last; nobody is asked."""
    view = target.view(swarm.known_servers(target.checkpoint))
    rtt_s = swarm.rtt_s([PeerId(hop.peer) for hop in hops])
    tokens = max(REFILL_TOKENS, swarm.settings.prefill_chunk_tokens or MAX_TOKENS)
    return Expected(
        router.step_s(view, hops, rtt_s, announced=True) or 0.0,
        router.chunk_s(view, hops, rtt_s, tokens) or 0.0,
    )
