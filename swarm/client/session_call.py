"""A call of the model's side that waits for its answers."""

from collections.abc import Sequence
from concurrent.futures import Future

from swarm.client.encoding import Answer, Encoded
from swarm.sessions.messages import RowOperation


class SessionCall:
    """One `step()` that waits for its answers."""

    def __init__(self, pieces: Sequence[Encoded], operation: RowOperation | None) -> None:
        self.pieces = pieces
        self.operation = operation
        self.tickets: dict[int, int] = {}
        self.answers: list[Answer | None] = [None] * len(pieces)
        self.missing = len(pieces)
        self.began = 0.0
        self.done: Future[list[Answer | None]] = Future()
