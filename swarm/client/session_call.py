"""A call of the model's side that waits for its answers."""

from collections.abc import Sequence
from concurrent.futures import Future

from swarm.client.encoding import Answer
from swarm.client.pieces import Piece
from swarm.sessions.messages import RowOperation


class SessionCall:
    """One `step()` that waits for its answers. Its pieces are sent one by one, as they are made."""

    def __init__(self, pieces: Sequence[Piece], operation: RowOperation | None) -> None:
        self.pieces = pieces
        self.operation = operation
        self.tickets: dict[int, int] = {}
        """Of the pieces that were sent, with their indexes."""
        self.answers: list[Answer | None] = [None] * len(pieces)
        self.missing = len(pieces)
        self.began = 0.0
        self.done: Future[list[Answer | None]] = Future()

    def progress(self) -> tuple[int, int]:
        """How many tokens are answered, and how many there are."""
        sizes = [piece.end - piece.start for piece in self.pieces]
        answered = zip(sizes, self.answers, strict=True)
        return sum(size for size, answer in answered if answer is not None), sum(sizes)
