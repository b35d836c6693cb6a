"""What is in the directory and no record: skipped, and told in a few lines."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from server_records import CHECKPOINT

from swarm.dht.directory import Directory
from swarm.wire.identity import Identity

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
