"""Which swarm a model belongs to: shared by all models of the process with the same peers."""

import asyncio
import os
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.client.runtime import Runtime, runtime
from swarm.client.settings import ClientSettings
from swarm.client.swarm import CLOSED_AFTER_S, Swarm, close_quietly
from swarm.errors import SwarmError, UsageError

LEAVE_POLL_S = 0.05
_Key = tuple[tuple[str, ...], ClientSettings]


@dataclass
class _Joined:
    runtime: Runtime
    swarm: Swarm
    users: int


_lock = threading.Lock()
_joined: dict[_Key, _Joined] = {}


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _joined.clear()


os.register_at_fork(after_in_child=_after_fork)


class Membership:
    """One user's share of a `Swarm`, usable from any thread; joins again after a fork."""

    def __init__(self, initial_peers: Sequence[str], settings: ClientSettings) -> None:
        """Joins the swarm, unless another member of this process has joined it.

        Raises UsageError without peers, AddressError, UnreachablePeerError, DaemonError.
        """
        if isinstance(initial_peers, str):
            initial_peers = (initial_peers,)
        if not initial_peers:
            raise UsageError(
                "no peer to join the swarm by; give initial_peers=[...] (--peers), the address "
                "that a server prints"
            )
        self._key: _Key = (tuple(sorted(set(initial_peers))), settings)
        self.settings = settings
        self._closed = False
        self._pid = os.getpid()
        self._entry = self._join()

    def get(self) -> tuple[Runtime, Swarm]:
        """The loop and what lives in it. Raises SwarmError after `close`."""
        if self._closed:
            raise SwarmError("this model has left the swarm; load it again")
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._entry = self._join()
        return self._entry.runtime, self._entry.swarm

    def close(self) -> None:
        """Leave; the last member of the process closes the swarm, and this waits for it."""
        with _lock:
            entry = self._leave()
        if entry is not None:
            entry.runtime.run(close_quietly(entry.swarm), CLOSED_AFTER_S)
            entry.runtime.forget(entry.swarm)

    def close_soon(self) -> None:
        """As `close`, from a finalizer in any thread: never waits."""
        if self._pid == os.getpid():
            self._entry.runtime.call_soon(_leave_in_task, self)

    async def leave_when_free(self) -> None:
        """As `close`, in the loop: another thread that joins keeps the lock for as long as that
        takes, and may wait for this loop."""
        while not _lock.acquire(blocking=False):  # noqa: ASYNC110 (other threads set no event)
            await asyncio.sleep(LEAVE_POLL_S)
        try:
            entry = self._leave()
        finally:
            _lock.release()
        if entry is not None:
            # Until it is closed the end of the program waits for it.
            await close_quietly(entry.swarm)
            entry.runtime.forget(entry.swarm)

    def _join(self) -> _Joined:
        with _lock:
            entry = _joined.get(self._key)
            if entry is None:
                peers, settings = self._key
                loop = runtime()
                swarm = loop.run(Swarm.join(peers, settings), discard=_close_in_task)
                loop.close_at_exit(swarm, swarm.close, CLOSED_AFTER_S)
                entry = _joined[self._key] = _Joined(loop, swarm, 0)
            entry.users += 1
            return entry

    def _leave(self) -> _Joined | None:
        """What is to be closed, if we were the last; under the lock. A fork's parent keeps what is
        its own."""
        closed, self._closed = self._closed, True
        if closed or self._pid != os.getpid():
            return None
        self._entry.users -= 1
        if self._entry.users > 0:
            return None
        if _joined.get(self._key) is self._entry:
            del _joined[self._key]
        return self._entry


_leaving: set["asyncio.Task[None]"] = set()


def _leave_in_task(member: Membership) -> None:
    _in_task(member.leave_when_free())


def _close_in_task(swarm: Swarm) -> None:
    _in_task(close_quietly(swarm))


def _in_task(leaving: Coroutine[Any, Any, None]) -> None:
    """For what nobody waits for."""
    task = asyncio.get_running_loop().create_task(leaving)
    _leaving.add(task)
    task.add_done_callback(_leaving.discard)
