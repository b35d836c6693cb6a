"""Which servers take the place of those that a session has lost."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from swarm.client.routes import ClientRouter
from swarm.errors import MissingBlocksError
from swarm.routing.view import Numerics, SwarmView
from swarm.sessions.messages import MAX_HOPS, Hop
from swarm.spans import PeerId, Span


def replaced_route(
    view: SwarmView,
    router: ClientRouter,
    hops: Sequence[Hop],
    lost: Collection[PeerId],
    *,
    rtt_s: Mapping[PeerId, float],
    tokens_needed: int,
    avoid: Collection[PeerId] = (),
    mix_numerics: bool = False,
) -> tuple[Hop, ...]:
    """The route to go on over: `hops` without `lost`, and others for the blocks between them.

    As many hops as possible stay, for they hold the session already; each run of lost blocks gets
    one server or several, which may use parts of longer spans. Where that is not possible, first
    one more hop is given up and then all: the client can fill any server from its own inputs. A
    hop that was given up may come back with other blocks. `avoid`: servers that may not be new.

    Raises MissingBlocksError with the runs of blocks that nobody serves.
    """
    avoided = {PeerId(peer) for peer in avoid}
    living = [hop for hop in hops if PeerId(hop.peer) not in lost]
    for kept in _choices(living):
        try:
            route = _filled(view, router, kept, rtt_s, tokens_needed, avoided, mix_numerics)
        except MissingBlocksError:
            continue
        if len(route) <= MAX_HOPS:
            return route
    return router.route(view, rtt_s=rtt_s, tokens_needed=tokens_needed, avoid=avoided)


def _choices(living: list[Hop]) -> Iterator[list[Hop]]:
    """What may be kept, best first; never nothing."""
    if living:
        yield living
    if len(living) > 1:
        for index in range(len(living)):
            yield living[:index] + living[index + 1 :]


def _filled(
    view: SwarmView,
    router: ClientRouter,
    kept: list[Hop],
    rtt_s: Mapping[PeerId, float],
    tokens_needed: int,
    avoided: set[PeerId],
    mix_numerics: bool,
) -> tuple[Hop, ...]:
    numerics = None if mix_numerics else _numerics_of(view, kept)
    taken = avoided | {PeerId(hop.peer) for hop in kept}
    route: list[Hop] = []
    reached = 0
    for hop in [*kept, None]:
        until = view.num_blocks if hop is None else hop.start
        if until > reached:
            gap = _clipped(view, Span(reached, until), numerics)
            found = router.route(gap, rtt_s=rtt_s, tokens_needed=tokens_needed, avoid=taken)
            route += [Hop(one.peer, one.start + reached, one.end + reached) for one in found]
            taken |= {PeerId(one.peer) for one in found}
        if hop is not None:
            route.append(hop)
            reached = hop.end
    return tuple(route)


def _numerics_of(view: SwarmView, kept: list[Hop]) -> Numerics | None:
    """How the hops that stay compute; None: no record of them is left."""
    peers = {hop.peer for hop in kept}
    return next((server.numerics for server in view.servers if server.peer in peers), None)


def _clipped(view: SwarmView, gap: Span, numerics: Numerics | None) -> SwarmView:
    """The servers of a run of blocks as if that was the whole model."""
    servers = []
    for server in view.servers:
        start, end = max(server.span.start, gap.start), min(server.span.end, gap.end)
        if start < end and numerics in (None, server.numerics):
            span = Span(start - gap.start, end - gap.start)
            # A prompt passes fewer blocks sooner.
            tokens_per_s = server.prefill_tokens_per_s * len(server.span) / len(span)
            servers.append(replace(server, span=span, prefill_tokens_per_s=tokens_per_s))
    return SwarmView(view.checkpoint, len(gap), tuple(servers))
