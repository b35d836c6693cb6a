"""Small swarms for the routing tests."""

from collections.abc import Sequence

from hypothesis import strategies as st

from swarm.routing.view import Numerics, ServerState, ServerView, SwarmView
from swarm.spans import PeerId, Span

CHECKPOINT = "checkpoint-of-the-tests"
FLOAT32 = Numerics("float32")
BFLOAT16 = Numerics("bfloat16")


def server(name: str, start: int, end: int, **changes: object) -> ServerView:
    fields: dict[str, object] = {
        "peer": PeerId(f"server-{name}"),
        "span": Span(start, end),
        "state": ServerState.ONLINE,
        "checkpoint": CHECKPOINT,
        "numerics": FLOAT32,
        "decode_ms_per_block": 1.0,
        "prefill_tokens_per_s": 100.0,
        "cache_tokens_free": 1000,
        "cache_tokens_total": 1000,
        "queue_wait_ms": 0.0,
    }
    return ServerView(**{**fields, **changes})  # type: ignore[arg-type]


def swarm(num_blocks: int, *servers: ServerView) -> SwarmView:
    return SwarmView(CHECKPOINT, num_blocks, servers)


@st.composite
def views(draw: st.DrawFn, max_blocks: int = 6, max_servers: int = 5) -> SwarmView:
    """Swarms with any spans, speeds, waits and caches; often with gaps."""
    num_blocks = draw(st.integers(1, max_blocks))
    servers: list[ServerView] = []
    for index in range(draw(st.integers(0, max_servers))):
        start = draw(st.integers(0, num_blocks - 1))
        servers.append(
            server(
                str(index),
                start,
                draw(st.integers(start + 1, num_blocks)),
                decode_ms_per_block=draw(st.sampled_from([0.0, 0.5, 1.0, 5.0, 40.0])),
                queue_wait_ms=draw(st.sampled_from([0.0, 1.0, 30.0])),
                cache_tokens_free=draw(st.sampled_from([10, 1000])),
                state=draw(st.sampled_from([ServerState.ONLINE] * 4 + [ServerState.JOINING])),
            )
        )
    return swarm(num_blocks, *servers)


def round_trips(view: SwarmView) -> st.SearchStrategy[dict[PeerId, float]]:
    peers: Sequence[PeerId] = [one.peer for one in view.servers]
    if not peers:
        return st.just({})
    return st.dictionaries(st.sampled_from(peers), st.sampled_from([0.0, 0.001, 0.02, 0.3]))
