"""A process that was stopped for hours, as by a frozen container, is found again afterwards."""

from pathlib import Path
from typing import Any

from tiny_models import save_tiny

from swarm.dht.records import MAX_MS
from swarm.testing import LocalSwarm


def test_what_waited_for_hours_keeps_no_server_out_of_the_directory(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    with LocalSwarm(tmp_path, "0:2") as swarm:
        server: Any = swarm.servers[0]

        async def announce_after_hours() -> bool:
            server._residence.stay._engine._counters._recent_queue_ms = 10 * MAX_MS
            return bool(await server._announce())

        assert swarm.run(announce_after_hours())
        assert swarm.statuses()[0]["queue_wait_ms"] == MAX_MS
