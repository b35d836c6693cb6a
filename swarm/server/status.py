"""What a server tells of itself to whoever asks: the fields of `swarm-client status`."""

import asyncio
import importlib.metadata
import json
import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

LAG_INTERVAL_S = 0.5
STATUS_AGE_S = 0.5
"""How old a status may be that is told: whoever asks in a loop costs next to nothing."""


@dataclass
class LoopLag:
    """How late the event loop runs its timers: the worst of the last minute or so."""

    worst_ms: float = 0.0

    async def watch(self) -> None:
        """Measures until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            late_ms = max(0.0, loop.time() - due) * 1e3
            # The worst fades within about a minute, so that an old hiccup is not shown for ever.
            self.worst_ms = max(late_ms, 0.98 * self.worst_ms)


class StatusCache:
    """The body of a `StatusReply`, made anew at most every `STATUS_AGE_S` and when the number of
    sessions has changed: clients choose among servers by it."""

    def __init__(self, fields: Callable[[], Mapping[str, Any]]) -> None:
        self._fields = fields
        self._made: tuple[float, int, bytes] | None = None

    def read(self, now: float, sessions: int) -> bytes:
        """JSON. `now`: seconds of any clock; `sessions`: how many are open."""
        made = self._made
        if made is None or now - made[0] >= STATUS_AGE_S or made[1] != sessions:
            made = self._made = (now, sessions, json.dumps(dict(self._fields())).encode())
        return made[2]


@cache
def program_version() -> str:
    """Of this package; `source` when it is run without being installed. Read once: later there may
    be no file descriptor left for it."""
    try:
        return importlib.metadata.version("swarm")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def open_file_count() -> int:
    """File descriptors of this process, its sockets included; 0 where nobody can tell."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1
    except FileNotFoundError:
        return 0
    except OSError:
        # None is left for the question itself: strangers' streams take them.
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def process_fields(streams: int, lag: LoopLag) -> Mapping[str, Any]:
    """What shows whether a long-running server leaks."""
    return {
        "streams": streams,
        "tasks": len(asyncio.all_tasks()),
        "open_files": open_file_count(),
        "loop_lag_ms": round(lag.worst_ms, 2),
    }
