"""What is in the directory and no record: skipped, and told in a few lines."""

import asyncio
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
from server_records import CHECKPOINT

from swarm.dht.directory import Directory
from swarm.wire.hivemind_setup import load_hivemind
from swarm.wire.identity import Identity

load_hivemind()  # before hivemind's modules are imported by name

from hivemind.dht.storage import DictionaryDHTValue  # noqa: E402
from hivemind.utils import MSGPackSerializer  # noqa: E402

from swarm.dht.protocol_rules import skip_what_is_bad  # noqa: E402
from swarm.dht.storage import MAX_RECORDS_PER_KEY  # noqa: E402

BAD = {f"somebody {number}": (b"no record", 1e9) for number in range(500)}


class Node:
    """Finds the same bad records under every key."""

    network = SimpleNamespace(peer_id=Identity(b"m" * 32).peer_id)

    async def get_many(self, keys: list[str]) -> dict[str, Any]:
        return dict.fromkeys(keys, BAD)


def test_bad_records_of_strangers_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    node: Any = Node()
    directory = Directory(node)
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(directory.snapshot(CHECKPOINT)) == []
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 9
    assert all("skipped in the directory" in line for line in lines)
    assert f"{len(BAD) - 8} more" in lines[-1]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(directory.snapshot(CHECKPOINT)) == []
    assert caplog.records == [], "told already"


def test_a_holder_that_answers_with_too_many_records_buys_no_checks() -> None:
    checked: list[bytes] = []

    def is_sound(_key: bytes, _packed: bytes, value: bytes, _expiration: float) -> bool:
        checked.append(value)
        return value != b"bad"

    protocol: Any = SimpleNamespace(
        call_find=None, call_store=None, _validate_record=is_sound, serializer=MSGPackSerializer
    )
    skip_what_is_bad(protocol)
    answer, expiration = DictionaryDHTValue(), time.time() + 60.0
    answer.store("first", b"bad", expiration)
    for number in range(3 * MAX_RECORDS_PER_KEY):
        answer.store(f"peer {number}", b"good", expiration)
    assert protocol._validate_dictionary(b"key", answer)
    assert len(checked) == MAX_RECORDS_PER_KEY
    assert len(answer) == MAX_RECORDS_PER_KEY - 1
    assert "first" not in answer
