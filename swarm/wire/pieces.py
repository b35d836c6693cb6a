"""Bytes that come in pieces, one after the other, and are wanted as one. Pure."""

_MIN_VIEW_BYTES = 16 * 1024


class Pieces:
    """Keeps long pieces as they are, and copies all others: what a piece is a view of stays in
    memory with it, so only one that is nearly all of that is kept. Together they take at most an
    eighth more than their bytes, and a little for every 16 KiB."""

    __slots__ = ("_pieces", "length")

    def __init__(self) -> None:
        self._pieces: list[bytearray | memoryview] = []
        self.length = 0

    def add(self, piece: memoryview) -> None:
        """`piece` must not be changed any more."""
        size = len(piece)
        self.length += size
        pieces = self._pieces
        if size >= _MIN_VIEW_BYTES and size + size // 8 >= memoryview(piece.obj).nbytes:
            pieces.append(piece)
        elif pieces and isinstance(pieces[-1], bytearray):
            pieces[-1] += piece
        else:
            pieces.append(bytearray(piece))

    def take(self) -> memoryview:
        """All of them, in memory of their own (writable); then there are none any more."""
        whole = memoryview(bytearray().join(self._pieces))
        self._pieces, self.length = [], 0
        return whole
