"""How many tokens of a prompt travel together.

A prompt of `n` tokens over `h` equal hops, in chunks of `c`, is through after the time of
`n + (h - 1) * c` tokens, for the last chunk starts behind all others and then passes `h - 1` more
hops; so smaller is better until what each chunk costs besides (a pass of its own, a message)
matters. How much of a chunk one pass computes is the server's affair (`pass_planner`). Pure.
"""

MIN_TOKENS = 32
MAX_TOKENS = 256
FILL = 0.25
"""The chunks that fill the chain are at most this part of the prompt, within the limits above."""


def chunk_tokens(tokens: int, hops: int) -> int:
    """For a prompt of `tokens` tokens, all rows together, over `hops` hops."""
    if hops == 1:
        return MAX_TOKENS
    return max(MIN_TOKENS, min(MAX_TOKENS, int(tokens * FILL / (hops - 1))))
