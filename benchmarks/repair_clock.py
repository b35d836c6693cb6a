"""When a client's repair reached which point, noted by the client's own methods."""

import time
from typing import Any

from swarm.client.remote_session import RemoteSession
from swarm.sessions.client import ClientSession
from swarm.sessions.messages import Output
from swarm.sessions.rerouting import Rerouting


class RepairClock:
    """From when it is made, for all sessions of this process.

    `marks`: of `noticed` (another way is looked for), `opened` (it is open), `fenced` (the servers
    have said what they hold) and `replayed` (all hold the same again) the first time each since
    they were cleared. `compute_s`: what the last servers of the routes say that their passes took.
    """

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        self.compute_s = 0.0
        self._before(RemoteSession, "_mend", "noticed")
        self._before(RemoteSession, "_reroute", "opened")
        self._before(Rerouting, "_next_refill", "fenced")
        self._after_repair()
        self._on_output()

    def _mark(self, mark: str) -> None:
        # A late step is asked for again over the old route first: that is not the repair yet.
        if mark in ("noticed", "opened") or "opened" in self.marks:
            self.marks.setdefault(mark, time.monotonic())

    def _before(self, owner: type, name: str, mark: str) -> None:
        method = getattr(owner, name)

        def wrapped(*arguments: Any) -> Any:
            self._mark(mark)
            return method(*arguments)

        setattr(owner, name, wrapped)

    def _after_repair(self) -> None:
        method = ClientSession._after_repair

        def wrapped(session: Any, *arguments: Any) -> Any:
            result = method(session, *arguments)
            if session._rerouting is None:
                self._mark("replayed")
            return result

        setattr(ClientSession, "_after_repair", wrapped)  # noqa: B010

    def _on_output(self) -> None:
        method = ClientSession._on_output

        def wrapped(session: Any, sender: Any, output: Output, *arguments: Any) -> Any:
            self.compute_s += output.compute_ms / 1e3
            return method(session, sender, output, *arguments)

        setattr(ClientSession, "_on_output", wrapped)  # noqa: B010
