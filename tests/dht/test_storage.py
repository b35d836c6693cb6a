"""What a DHT peer keeps for others, and what it refuses."""

import time
from collections.abc import Iterator

import pytest
from server_records import CHECKPOINT, record

from swarm.dht.records import MAX_LIFETIME_S, server_key
from swarm.dht.signing import dht_key_id
from swarm.wire.hivemind_setup import load_hivemind
from swarm.wire.identity import Identity

load_hivemind()  # before hivemind's modules are imported by name

from hivemind.dht.routing import DHTID  # noqa: E402
from hivemind.dht.storage import DictionaryDHTValue  # noqa: E402
from hivemind.dht.validation import DHTRecord  # noqa: E402
from hivemind.utils import MSGPackSerializer  # noqa: E402

from swarm.dht import storage as storage_module  # noqa: E402
from swarm.dht.storage import BoundedStorage, newer_than_stored  # noqa: E402
from swarm.dht.validator import SwarmRecordValidator  # noqa: E402

ALICE = Identity(b"a" * 32)
BOB = Identity(b"b" * 32)
KEY = server_key(CHECKPOINT, 0)
KEY_ID = DHTID.generate(KEY)


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr("hivemind.utils.timed_storage.get_dht_time", clock)
    monkeypatch.setattr(storage_module, "get_dht_time", clock)
    yield clock


def values(storage: BoundedStorage) -> dict[str, bytes]:
    found = storage.get(KEY_ID)
    return {} if found is None else {peer: item.value for peer, item in found.value.items()}


def test_our_key_is_hiveminds_key() -> None:
    assert KEY_ID.to_bytes() == dht_key_id(KEY)


def test_records_are_kept_until_they_expire(clock: Clock) -> None:
    storage = BoundedStorage()
    assert storage.store(KEY_ID, b"a", clock.now + 10, subkey="alice")
    assert storage.store(KEY_ID, b"b", clock.now + 20, subkey="bob")
    assert values(storage) == {"alice": b"a", "bob": b"b"}
    clock.now += 15
    assert values(storage) == {"bob": b"b"}
    clock.now += 15
    assert values(storage) == {}
    assert storage.num_records() == 0


def test_an_old_copy_neither_replaces_nor_shortens_its_successor(clock: Clock) -> None:
    storage = BoundedStorage()
    assert storage.store(KEY_ID, b"new", clock.now + 60, subkey="alice")
    assert not storage.store(KEY_ID, b"old", clock.now + 10, subkey="alice")
    clock.now += 30
    assert values(storage) == {"alice": b"new"}


def test_the_same_record_again_is_welcome(clock: Clock) -> None:
    storage = BoundedStorage()
    assert storage.store(KEY_ID, b"a", clock.now + 60, subkey="alice")
    assert storage.store(KEY_ID, b"a", clock.now + 60, subkey="alice")


def test_what_is_refused(clock: Clock) -> None:
    storage = BoundedStorage()
    assert not storage.store(KEY_ID, b"no owner", clock.now + 60)
    assert not storage.store(KEY_ID, b"expired", clock.now - 1, subkey="alice")
    assert not storage.store(KEY_ID, b"long", clock.now + MAX_LIFETIME_S + 60, subkey="alice")
    assert storage.get(KEY_ID) is None


def test_a_full_key_takes_no_more_peers_and_keeps_those_it_has(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "MAX_RECORDS_PER_KEY", 3)
    monkeypatch.setattr(storage_module, "MAX_RECORDS", 5)
    storage = BoundedStorage()
    for peer in "abc":
        assert storage.store(KEY_ID, b"1", clock.now + 60, subkey=peer)
    assert not storage.store(KEY_ID, b"1", clock.now + 60, subkey="d")
    assert storage.store(KEY_ID, b"2", clock.now + 70, subkey="a")
    other = DHTID.generate("other")
    assert storage.store(other, b"1", clock.now + 60, subkey="a")
    assert storage.store(other, b"1", clock.now + 60, subkey="b")
    assert not storage.store(other, b"1", clock.now + 60, subkey="c")
    clock.now += 65
    assert values(storage) == {"a": b"2"}
    assert storage.store(KEY_ID, b"1", clock.now + 60, subkey="d")


def test_records_are_counted_without_walking_them(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = BoundedStorage()
    monkeypatch.setattr(storage, "items", None)  # what walks all keys
    for number in range(200):
        key = DHTID.generate(str(number))
        assert storage.store(key, b"1", clock.now + 10 + number % 2 * 20, subkey="a")
        assert storage.store(key, b"2", clock.now + 20 + number % 2 * 20, subkey="a")
    assert storage.num_records() == 200
    clock.now += 25
    assert storage.num_records() == 100
    clock.now += 25
    assert storage.num_records() == 0
    assert not storage._expirations and not storage._soonest


def test_only_what_is_newer_is_merged_and_claims_of_age_are_ignored(clock: Clock) -> None:
    storage = BoundedStorage()
    storage.store(KEY_ID, b"here", clock.now + 50, subkey="a")
    storage.store(KEY_ID, b"here", clock.now + 50, subkey="b")
    found = DictionaryDHTValue()
    for peer, until in (("a", 40), ("b", 60), ("c", 30)):
        found.store(peer, b"there", clock.now + until)
    found.latest_expiration_time = float("inf")
    newer = newer_than_stored(storage, KEY_ID, found)
    assert newer is not None
    assert newer.expiration_time == clock.now + 60
    assert {peer for peer, _ in newer.value.items()} == {"b", "c"}
    assert newer_than_stored(storage, KEY_ID, DictionaryDHTValue()) is None


def dht_record(**changes: object) -> DHTRecord:
    until = 1_800_000_000.0
    fields: dict[str, object] = {
        "key": KEY_ID.to_bytes(),
        "subkey": MSGPackSerializer.dumps(ALICE.peer_id),
        "value": MSGPackSerializer.dumps(record(ALICE.peer_id).sealed(ALICE, KEY, until)),
        "expiration_time": until,
    }
    return DHTRecord(**{**fields, **changes})


def test_the_validator_passes_what_its_owner_signed() -> None:
    validator = SwarmRecordValidator()
    assert validator.validate(dht_record())
    assert validator.validate(dht_record())
    assert validator.strip_value(dht_record()) == dht_record().value


@pytest.mark.parametrize(
    "changes",
    [
        {"key": DHTID.generate("another key").to_bytes()},
        {"subkey": MSGPackSerializer.dumps(BOB.peer_id)},
        {"subkey": MSGPackSerializer.dumps(None)},
        {"subkey": MSGPackSerializer.dumps("x" * 1000)},
        {"subkey": MSGPackSerializer.dumps(7)},
        {"subkey": b"\xc1"},
        {"subkey": b"\xa2\xff\xfe"},
        {"expiration_time": 1_800_000_001.0},
        {"expiration_time": float("nan")},
        {"value": b""},
        {"value": MSGPackSerializer.dumps(b"x" * 500)},
        {"value": MSGPackSerializer.dumps(b"x" * 5000)},
        {"value": MSGPackSerializer.dumps({"a": 1})},
        {"value": dht_record().value + b"more"},
    ],
)
def test_the_validator_refuses_everything_else(changes: dict[str, object]) -> None:
    validator = SwarmRecordValidator()
    assert not validator.validate(dht_record(**changes))
    assert not validator.validate(dht_record(**changes))
    assert validator.validate(dht_record())


def test_what_was_kept_before_the_clock_was_set_back_keeps_nothing_newer_out(clock: Clock) -> None:
    storage = BoundedStorage()
    clock.now += 3600
    assert storage.store(KEY_ID, b"old", clock.now + 60, subkey="alice")
    clock.now -= 3600
    assert storage.store(KEY_ID, b"new", clock.now + 60, subkey="alice")
    assert values(storage) == {"alice": b"new"}
    clock.now += 61
    assert values(storage) == {}
    assert storage.num_records() == 0


def test_a_copy_that_lives_too_long_hides_no_other_that_is_found(clock: Clock) -> None:
    """Its owner signed it with a clock that was ahead, and anybody may show it again."""
    storage = BoundedStorage()
    found = DictionaryDHTValue()
    found.store("alice", b"ahead", clock.now + 3600)
    found.store("bob", b"right", clock.now + 60)
    newer = newer_than_stored(storage, KEY_ID, found)
    assert newer is not None and newer.expiration_time == clock.now + 60
    assert {peer: item.value for peer, item in newer.value.items()} == {"bob": b"right"}
