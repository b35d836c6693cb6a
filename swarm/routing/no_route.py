"""Why there is no chain, for whoever asked for one."""

from collections.abc import Sequence

from swarm.errors import CacheFullError, MissingBlocksError, SwarmError
from swarm.routing.router import RouteRequest
from swarm.routing.view import ServerState, ServerView, SwarmView
from swarm.spans import Span, missing_spans


def no_route(view: SwarmView, request: RouteRequest) -> SwarmError:
    """Blocks that nobody serves, servers that do not compute alike, or too small caches."""
    servers = view.online(request.avoid)
    if missing := missing_spans([server.span for server in servers], view.num_blocks):
        return _nobody(view, request, missing)
    by_numerics: dict[str, list[Span]] = {}
    for server in servers:
        by_numerics.setdefault(str(server.numerics), []).append(server.span)
    lacking = {
        kind: missing_spans(spans, view.num_blocks) for kind, spans in sorted(by_numerics.items())
    }
    if not all(lacking.values()):
        return CacheFullError(
            f"no chain over {view.num_blocks} blocks ever has room for a session of "
            f"{request.cache_tokens} tokens; ask for fewer, or add servers with more cache"
        )
    kinds = "; ".join(f"{kind}: {_runs(spans)} missing" for kind, spans in lacking.items())
    blocks = sorted({span for spans in lacking.values() for span in spans})
    return MissingBlocksError(
        f"no servers that compute alike cover all {view.num_blocks} blocks ({kinds}); "
        "allow it (--mix-numerics, ClientSettings(mix_numerics=True)), or start a server for "
        "the missing blocks",
        tuple(map(str, blocks)),
    )


def _nobody(view: SwarmView, request: RouteRequest, missing: Sequence[Span]) -> MissingBlocksError:
    message = f"no server is online for blocks {_runs(missing)} of {view.num_blocks}"
    soon = [f"{server.span} is {server.state}" for server in view.servers if _soon(server, missing)]
    if soon:
        message += f" ({', '.join(soon)})"
    if request.avoid:
        message += f" ({len(request.avoid)} servers that just failed are left out)"
    message += f"; start one with: swarm-server --blocks {missing[0]} --peers ..."
    return MissingBlocksError(message, tuple(map(str, missing)))


def _soon(server: ServerView, missing: Sequence[Span]) -> bool:
    """Whether the server has some of the blocks and is not online."""
    return server.state in (ServerState.JOINING, ServerState.DRAINING) and any(
        server.span.start < gap.end and gap.start < server.span.end for gap in missing
    )


def _runs(spans: Sequence[Span]) -> str:
    return ", ".join(map(str, spans))
