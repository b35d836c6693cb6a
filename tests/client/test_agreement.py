"""Which servers are outvoted, block by block, and by whom."""

import logging
import random
import sys
from pathlib import Path

import pytest

from swarm.client.agreement import Agreement, contested, outvoted
from swarm.dht.records import ServerRecord
from swarm.printable import MAX_LISTED
from swarm.spans import PeerId
from swarm.wire.identity import Identity

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dht"))
from server_records import record

PEERS = [Identity(bytes([number]) * 32).peer_id for number in range(40)]


def announced(*servers: tuple[int, str]) -> list[ServerRecord]:
    """Each server as its first block and a letter for each block's digest."""
    return [
        record(
            peer,
            start,
            start + (len(digests) or 2),
            block_digests=b"".join(letter.encode() * 4 for letter in digests),
        )
        for peer, (start, digests) in zip(PEERS, servers, strict=False)
    ]


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
@pytest.mark.parametrize("reached", [False, True])
def test_records_count_where_nobody_or_one_place_was_reached(
    servers: list[tuple[int, str]], expected: dict[int, int], reached: bool
) -> None:
    places = dict.fromkeys(PEERS, "192.0.2.0/24") if reached else {}
    found = outvoted(announced(*servers), places)
    assert found == {PEERS[index]: block for index, block in expected.items()}


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        # One that was reached counts for more than any number that were not.
        ({0: "here"}, {1, 2, 3}),
        # Many names at one place are one, and the records decide again.
        ({0: "here", 1: "there", 2: "there", 3: "there"}, {0}),
        ({0: "here", 1: "there", 2: "elsewhere"}, {0}),
        ({1: "there"}, {0}),
    ],
)
def test_places_count_for_more_than_records(places: dict[int, str], expected: set[int]) -> None:
    records = announced((0, "ab"), (0, "xb"), (0, "xb"), (0, "xb"))
    found = outvoted(records, {PEERS[index]: place for index, place in places.items()})
    assert found == dict.fromkeys((PEERS[index] for index in expected), 0)


@pytest.mark.parametrize("seed", range(50))
def test_who_is_outvoted_was_outnumbered_in_places(seed: int) -> None:
    """Whatever strangers write into the directory, and under however many names."""
    rng = random.Random(seed)
    blocks, honest = 6, PEERS[:8]
    liars = PEERS[8 : 8 + rng.randint(9, 30)]
    prefixes = [f"198.51.{number}.0/24" for number in range(rng.randint(1, 4))]
    records = [_random_record(peer, blocks, "t", rng) for peer in honest]
    records += [_random_record(peer, blocks, rng.choice("uvw"), rng) for peer in liars]
    places = {peer: f"203.0.{number}.0/24" for number, peer in enumerate(honest)}
    places = {peer: place for peer, place in places.items() if rng.random() < 0.8}
    places |= {peer: rng.choice(prefixes) for peer in liars if rng.random() < 0.5}
    rng.shuffle(records)
    found = outvoted(records, places)
    for peer in found.keys() & set(honest):
        block = found[peer]
        ours = {places.get(one.peer) for one in records if one.digest_of(block) == b"tttt"}
        against = [
            {places.get(one.peer) for one in records if one.digest_of(block) == letter * 4}
            for letter in (b"u", b"v", b"w")
        ]
        assert max(len(theirs - {None}) for theirs in against) >= len(ours - {None})
    # Those that answer nobody outvote nobody who does.
    by_honest = outvoted(records, {peer: places[peer] for peer in places.keys() & set(honest)})
    assert not by_honest.keys() & places.keys() & set(honest)
    assert by_honest.keys() <= contested(records)


def _random_record(peer: PeerId, blocks: int, letter: str, rng: random.Random) -> ServerRecord:
    start = rng.randrange(blocks - 1)
    end = rng.randint(start + 1, blocks)
    return record(peer, start, end, block_digests=letter.encode() * 4 * (end - start))


def test_contested_are_all_servers_of_a_block_with_several_digests() -> None:
    records = announced((0, "ab"), (1, "xc"), (2, "cd"), (0, ""))
    assert contested(records) == set(PEERS[:2])
    assert contested(announced((0, "ab"), (1, "bc"))) == set()


def test_where_a_server_was_reached_is_kept_as_long_as_its_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agreement = Agreement()
    records = announced((0, "ab"), (0, "xb"), (0, "xb"))
    with caplog.at_level(logging.WARNING):
        assert agreement.doubted(records) == {PEERS[0]}
        assert caplog.records == [], "nobody was asked yet"
        agreement.reached(PEERS[0], "/ip4/192.0.2.7/tcp/4001")
        assert agreement.doubted(records, tell=True) == set(PEERS[1:3])
        assert agreement.doubted(records, tell=True) == set(PEERS[1:3])
        assert len(caplog.records) == 1
        agreement.keep(PEERS[1:3])
        assert agreement.doubted(records, tell=True) == {PEERS[0]}


def test_names_behind_one_prefix_are_one_place() -> None:
    agreement = Agreement()
    records = announced((0, "a"), (0, "a"), (0, "x"), (0, "x"), (0, "x"))
    addresses = ["192.0.2.7", "203.0.113.7", "198.51.100.1", "198.51.100.2", "198.51.100.3"]
    for peer, address in zip(PEERS, addresses, strict=False):
        agreement.reached(peer, f"/ip4/{address}/tcp/4001")
    assert agreement.doubted(records) == set(PEERS[2:5])
    agreement.reached(PEERS[3], "/ip4/100.0.1.1/tcp/4001")
    agreement.reached(PEERS[4], "/ip4/100.0.2.1/tcp/4001")
    assert agreement.doubted(records) == set(PEERS[:2])


def test_the_log_names_a_few_however_many_there_are(caplog: pytest.LogCaptureFixture) -> None:
    agreement = Agreement()
    agreement.reached(PEERS[0], "/ip4/192.0.2.7/tcp/4001")
    with caplog.at_level(logging.WARNING):
        agreement.doubted(announced((0, "ab"), *[(0, "xb")] * 30), tell=True)
    (told,) = [one.getMessage() for one in caplog.records]
    assert sum(peer in told for peer in PEERS) == MAX_LISTED
    assert f"and {30 - MAX_LISTED} more" in told
