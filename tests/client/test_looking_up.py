"""Servers are looked up behind the caller's back: what goes wrong there is in the log."""

import asyncio
import logging

import pytest

from swarm.client.swarm import Swarm
from swarm.errors import PeerTimeoutError


@pytest.mark.parametrize(
    ("error", "level"),
    [(PeerTimeoutError("nobody answers"), logging.INFO), (ValueError("a mistake"), logging.ERROR)],
)
def test_a_mistake_of_our_own_is_told_with_its_traceback(error, level, caplog):
    async def run():
        swarm = Swarm.__new__(Swarm)
        swarm._lookups = {}
        swarm._loop = asyncio.get_running_loop()

        async def fail(checkpoint):
            raise error

        swarm._find_servers = fail
        await asyncio.gather(swarm._look_up("c" * 40), return_exceptions=True)
        await asyncio.sleep(0)
        assert swarm._lookups == {}

    with caplog.at_level(logging.INFO, logger="swarm.client.swarm"):
        asyncio.run(run())
    (told,) = [record for record in caplog.records if record.name == "swarm.client.swarm"]
    assert told.levelno == level
    assert (told.exc_info is not None) == (level == logging.ERROR)
    assert str(error) in caplog.text
