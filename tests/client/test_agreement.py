"""Which servers are outvoted, block by block."""

import sys
from pathlib import Path

import pytest

from swarm.client.agreement import outvoted
from swarm.wire.identity import Identity

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dht"))
from server_records import record

PEERS = [Identity.create().peer_id for _ in range(4)]


@pytest.mark.parametrize(
    ("servers", "expected"),
    [
        ([(0, "ab"), (1, "bc"), (0, "abc")], {}),
        ([(0, "ab"), (0, "xb"), (0, "ab")], {1: 0}),
        ([(0, "abc"), (0, "abc"), (1, "yc"), (2, "c")], {2: 1}),
        # One word against another; and nobody speaks of what only it has.
        ([(0, "ab"), (1, "xc")], {}),
        # Two are wrong in different ways, and in different blocks.
        ([(0, "abc"), (0, "xbc"), (0, "ayc"), (0, "abc")], {1: 0, 2: 1}),
        # Who tells no digests is neither counted nor accused.
        ([(0, "ab"), (0, ""), (0, "xb")], {}),
        ([(0, "ab"), (0, "ab"), (0, ""), (1, "x")], {3: 1}),
    ],
)
def test_outvoted(servers: list[tuple[int, str]], expected: dict[int, int]) -> None:
    """Each server as its first block and a letter for each block's digest."""
    records = [
        record(
            peer,
            start,
            start + (len(digests) or 2),
            block_digests=b"".join(letter.encode() * 4 for letter in digests),
        )
        for peer, (start, digests) in zip(PEERS, servers, strict=False)
    ]
    assert outvoted(records) == {PEERS[index]: block for index, block in expected.items()}
