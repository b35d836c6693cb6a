"""Which blocks a server takes when its owner does not say."""

from statistics import median

from swarm.errors import BadSpanError
from swarm.routing.view import ServerState, ServerView, SwarmView
from swarm.spans import Span

_UNMEASURED_RATE = 1.0


def block_rates(view: SwarmView) -> list[float]:
    """For each block, the sum of the decode rates (tokens/s through one block) of its holders.

    Servers that are still joining count, since they will soon be there; one whose speed is not
    known yet counts as the median of the others.
    """
    holders = [
        server
        for server in sorted(view.servers, key=lambda server: (server.peer, server.span))
        if server.state in (ServerState.ONLINE, ServerState.JOINING)
        and server.checkpoint == view.checkpoint
    ]
    measured = [1000 / s.decode_ms_per_block for s in holders if s.decode_ms_per_block > 0]
    usual = median(measured) if measured else _UNMEASURED_RATE
    rates = [0.0] * view.num_blocks
    for server in holders:
        for block in range(server.span.start, min(server.span.end, view.num_blocks)):
            rates[block] += _rate(server, usual)
    return rates


def least_covered(view: SwarmView, num_blocks: int, size: int) -> Span:
    """The run of `size` blocks whose weakest blocks are weakest.

    The rule of Petals (`choose_best_blocks`): the start whose rates, sorted, are lexicographically
    smallest; among equals the smallest start. A `size` beyond the model takes all of it.

    Raises BadSpanError when there is nothing to take.
    """
    if size < 1 or num_blocks < 1:
        raise BadSpanError(
            f"cannot place {size} of {num_blocks} blocks; a server holds at least one block"
        )
    size = min(size, num_blocks)
    rates = block_rates(SwarmView(view.checkpoint, num_blocks, view.servers))
    start = min(
        range(num_blocks - size + 1),
        key=lambda first: (sorted(rates[first : first + size]), first),
    )
    return Span(start, start + size)


def _rate(server: ServerView, usual: float) -> float:
    return 1000 / server.decode_ms_per_block if server.decode_ms_per_block > 0 else usual
