"""What a session is for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """The model whose blocks a session runs."""

    name: str
    checkpoint: str
    num_blocks: int
    hidden_size: int
    dtype: str
    """Of the activations on the wire."""
