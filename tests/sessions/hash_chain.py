"""A decoder that computes hashes instead of activations: any wrong K/V shows in its outputs.

The K/V of a slot is a hash of the token's input, its position, the block, and the K/V of the slot
before, which is a hash of everything before it. The output is a hash of that.
"""

from collections.abc import Sequence

Row = list[list[int]]
"""K/V of one row: per block, one hash per slot."""


class HashChain:
    """Blocks `start:end` of the decoder, with a K/V cache of rows.

    `strict`: being told to write anywhere but at a row's end is an error of the caller. Without it
    the cache does what pages would: it overwrites, and what was never written is zero.
    """

    def __init__(self, start: int, end: int, *, strict: bool = True) -> None:
        self.blocks = range(start, end)
        self.strict = strict
        self.rows: list[Row] = []

    def apply(self, parents: Sequence[int] | None, truncate_to: Sequence[int] | None) -> None:
        if parents is not None and self.rows:
            self.rows = [
                [list(slots) for slots in self.rows[parent % len(self.rows)]] for parent in parents
            ]
        if truncate_to is not None and self.rows:
            for row, keep in zip(self.rows, truncate_to, strict=self.strict):
                for slots in row:
                    del slots[keep:]

    def forward(
        self,
        starts: Sequence[int],
        counts: Sequence[int],
        position_ids: Sequence[int],
        inputs: Sequence[int],
    ) -> list[int]:
        if not self.rows:
            self.rows = [[[] for _ in self.blocks] for _ in starts]
        assert not self.strict or len(self.rows) == len(starts)
        outputs: list[int] = []
        token = 0
        for index, (start, count) in enumerate(zip(starts, counts, strict=True)):
            row = self.rows[index % len(self.rows)]
            self._place(row, start)
            for _ in range(count):
                value = inputs[token]
                for block, slots in zip(self.blocks, row, strict=True):
                    before = slots[-1] if slots else 0
                    slots.append(hash((before, value, position_ids[token], block)))
                    value = hash((slots[-1], block))
                outputs.append(value)
                token += 1
        return outputs

    def _place(self, row: Row, start: int) -> None:
        for slots in row:
            assert not self.strict or len(slots) == start, f"slot {start} where {len(slots)} are"
            del slots[start:]
            slots += [0] * (start - len(slots))
