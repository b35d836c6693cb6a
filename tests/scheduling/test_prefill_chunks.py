"""Chunks of prompts on a pipeline that is simulated."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.scheduling.prefill_chunks import MAX_TOKENS, MIN_TOKENS, chunk_tokens


def pipeline(tokens: int, hops: int, chunk: int, fixed: float) -> float:
    """When the last token leaves the last hop; a token takes a hop 1, a pass `fixed` besides."""
    free = [0.0] * hops
    for first in range(0, tokens, chunk):
        ready = 0.0
        for hop in range(hops):
            ready = max(ready, free[hop]) + fixed + min(chunk, tokens - first)
            free[hop] = ready
    return free[-1]


@settings(max_examples=50)
@given(st.integers(1, 5000), st.integers(1, 32))
def test_chunks_are_within_their_limits(tokens: int, hops: int) -> None:
    assert MIN_TOKENS <= chunk_tokens(tokens, hops) <= MAX_TOKENS


@pytest.mark.parametrize(
    ("tokens", "hops", "most"), [(2048, 3, 0.5), (512, 3, 0.65), (1024, 4, 0.5)]
)
def test_a_prompt_streams_through_the_chain(tokens: int, hops: int, most: float) -> None:
    """Against the whole prompt going from hop to hop."""
    streamed = pipeline(tokens, hops, chunk_tokens(tokens, hops), fixed=8.0)
    assert streamed <= most * pipeline(tokens, hops, tokens, fixed=8.0)
