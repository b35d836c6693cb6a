"""A whole swarm in one process, for tests of code that uses one, and for notebooks.

    from swarm.testing import LocalSwarm

    with LocalSwarm("path/to/model", "0:2", "2:4") as swarm, swarm.client() as model:
        model.generate(ids, max_new_tokens=20)

Servers and clients are the real ones; only the network is another: in memory, without sockets and
processes, with delays, bandwidths, partitions and crashes that a test sets. Every record of the
directory is signed and checked as in the DHT.
"""

import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from swarm.client.model import AutoModelForCausalLM
from swarm.client.runtime import runtime
from swarm.client.settings import ClientSettings
from swarm.errors import UsageError
from swarm.server.config import ServerConfig, make_config
from swarm.server.events import ServerEvent
from swarm.server.server import Server
from swarm.spans import PeerId
from swarm.wire.memory import MemoryNetworkHub
from swarm.wire.memory import Path as NetworkPath

__all__ = ["LocalSwarm", "NetworkPath"]

Result = TypeVar("Result")

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
DEADLINE_S = 120.0
"""Only so that a fault ends; nothing is decided by it."""
CACHE_TOKENS = 4096
"""Of each server that is not told another number."""


class LocalSwarm:
    """Servers of one model, and clients of theirs, in this process.

    They live in the event loop of the process's swarm clients, which has a thread of its own, so
    everything here may be called from any other thread, also inside a running loop (Jupyter's).
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *spans: str,
        path: NetworkPath | None = None,
        loopback: bool = False,
        **config: Any,
    ) -> None:
        """A server for each of `spans` (`"0:2"`), all with `config` as fields of `ServerConfig`.

        `model`: a folder, a GGUF file, a hub name, or None for SmolLM2-135M-Instruct. `path`: what
        lies between any two peers (default: no delay, no limit). `loopback`: the real network
        instead, libp2p on 127.0.0.1, with a daemon process for each peer.
        """
        self.model = model
        self.servers: list[Server] = []
        """Those that run, in the order of their start."""
        self._spans = spans
        self._config = config
        self._hub = None if loopback else MemoryNetworkHub(path=path)
        self._folder = tempfile.TemporaryDirectory(prefix="local-swarm-")
        self._numbers = count(1)

    def __enter__(self) -> Self:
        try:
            for span in self._spans:
                self.start(span)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all servers, those that joined last first."""
        try:
            while self.servers:
                self.stop(self.servers[-1], drain=False)
        finally:
            self._folder.cleanup()

    @property
    def address(self) -> str:
        """Where others join: `initial_peers=[swarm.address]`, `--peers`. UsageError if no server
        runs."""
        if not self.servers:
            raise UsageError("no server of this swarm runs; start(blocks) one first")
        return self.servers[0].address

    # ---- servers

    def start(
        self,
        blocks: str | None = None,
        *,
        on_event: Callable[[ServerEvent], None] = lambda event: None,
        **config: Any,
    ) -> Server:
        """A server that is online; `config`: further fields of `ServerConfig`. Without `blocks` it
        chooses them itself, and may move.

        Raises what `Server.start` raises.
        """
        values: dict[str, Any] = {
            "model": None if self.model is None else str(self.model),
            "blocks": blocks,
            "listen": (LOOPBACK if self._hub is None else self._hub.address,),
            "peers": (self.address,) if self.servers else (),
            "identity": Path(self._folder.name) / f"identity-{next(self._numbers)}",
            "threads": torch.get_num_threads(),
            "cache_tokens": CACHE_TOKENS,
            "drain_timeout_s": 0.0,
        }
        server = Server(
            make_config(ServerConfig, **{**values, **self._config, **config}), on_event=on_event
        )
        self.run(server.start())
        self.servers.append(server)
        return server

    def stop(self, server: Server, *, drain: bool = True) -> None:
        """Says goodbye and closes; with `drain` its sessions first get `drain_timeout_s`."""
        self.servers.remove(server)
        self.run(server.stop(drain=drain))

    def kill(self, server: Server) -> None:
        """As if its process was killed: no goodbye, and its record lives on for a while."""
        hub = self._in_memory()
        self.call(lambda: hub.vanish(server.peer_id))
        self.stop(server, drain=False)

    def statuses(self) -> list[dict[str, Any]]:
        """What `swarm-client status` shows of each server that runs."""
        return self.call(lambda: [server.status() for server in self.servers])

    # ---- clients

    @contextmanager
    def client(
        self, *, by: Server | None = None, dtype: torch.dtype | str | None = None, **settings: Any
    ) -> Iterator[Any]:
        """The model as a user has it, closed on leaving; `settings`: fields of `ClientSettings`.

        `by`: the server to join the swarm by (default: the first). Clients that join by the same
        server with the same settings are one peer.
        """
        model = AutoModelForCausalLM.from_pretrained(
            self.model,
            initial_peers=[self.address if by is None else by.address],
            dtype=dtype,
            settings=ClientSettings(**settings),
        )
        try:
            yield model
        finally:
            model.close()

    # ---- what lies between them

    def set_path(
        self, first: Server | None = None, second: Server | None = None, **changes: Any
    ) -> None:
        """Changes fields of `NetworkPath` between two servers, or between all peers that have no
        path of their own, from now on. UsageError with `loopback`."""
        hub = self._in_memory()
        if first is None or second is None:
            self.call(lambda: hub.set_default_path(**changes))
        else:
            a, b = first.peer_id, second.peer_id
            self.call(lambda: hub.set_path(a, b, **changes))

    def partition(self, server: Server, other: Server | None = None) -> None:
        """Silently: nothing passes between the two, or `server` and everybody, until `heal`."""
        hub, peers = self._in_memory(), _peers(server, other)
        self.call(lambda: hub.partition(*peers) if len(peers) == 2 else hub.isolate(*peers))

    def heal(self, server: Server, other: Server | None = None) -> None:
        """Ends a `partition`; what was written meanwhile arrives now."""
        hub, peers = self._in_memory(), _peers(server, other)
        self.call(lambda: hub.heal(*peers) if len(peers) == 2 else hub.rejoin(*peers))

    def break_streams(self) -> int:
        """All streams end at once, as when a router restarts; the links go on over new ones. How
        many there were."""
        return self.call(self._in_memory().reset_all)

    # ---- in the swarm's loop

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Waits for a coroutine in the loop of servers and clients."""
        return runtime().run(work, DEADLINE_S)

    def call(self, function: Callable[[], Result]) -> Result:
        """Waits for a function in that loop."""

        async def call() -> Result:
            return function()

        return self.run(call())

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Waits until `condition()`, asked in that loop, is true. TimeoutError, with what the
        servers say of themselves, after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not self.call(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s:g} s; the servers: {self.statuses()}")
            time.sleep(0.02)

    def wait_until_free(self, timeout_s: float = 60.0) -> None:
        """No session is left and every cache is whole again."""
        self.wait_until(lambda: not any(map(_holds_something, self.servers)), timeout_s)

    def _in_memory(self) -> MemoryNetworkHub:
        if self._hub is None:
            raise UsageError(
                "only the network in memory has delays and faults to set; leave out loopback=True"
            )
        return self._hub


def _peers(server: Server, other: Server | None) -> tuple[PeerId, ...]:
    return (server.peer_id,) if other is None else (server.peer_id, other.peer_id)


def _holds_something(server: Server) -> bool:
    status = server.status()
    return bool(status["sessions"] or status["cache_tokens_free"] != status["cache_tokens_total"])
