"""Whole servers over libp2p: made with defaults, watched, and left without a trace."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libp2p_peers import run_in_peace
from raw_client import RawClient
from tiny_models import save_tiny

from swarm.models.checkpoint import open_checkpoint
from swarm.server.config import ServerConfig, make_config
from swarm.server.events import ServerEvent
from swarm.server.server import Server
from swarm.spans import PeerId, Span
from swarm.wire.identity import Identity
from swarm.wire.libp2p import Libp2pNetwork

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
BLOCKS = 4


def tiny_llama_in(folder: Path, seed: int) -> Path:
    save_tiny("llama", folder, seed=seed, blocks=BLOCKS)
    return folder


@dataclass(frozen=True)
class Host:
    """A server as `RawClient` wants it."""

    peer: PeerId
    span: Span


@dataclass
class Told:
    """What servers said, in order."""

    events: list[ServerEvent] = field(default_factory=list)

    def __call__(self, event: ServerEvent) -> None:
        self.events.append(event)

    @property
    def states(self) -> list[str]:
        """Without notices, each once in a row."""
        names = [event.event for event in self.events if event.event != "notice"]
        return [name for index, name in enumerate(names) if names[index - 1 : index] != [name]]

    def last(self, name: str) -> dict[str, Any]:
        return next(event.fields for event in reversed(self.events) if event.event == name)


class ServerMaker:
    """Starts servers with defaults for tests; they are stopped by `with`."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self.count = 0

    def server(self, blocks: str | None = None, **changes: Any) -> tuple[Server, Told]:
        self.count += 1
        values: dict[str, Any] = {
            "model": str(self.model),
            "blocks": blocks,
            "listen": (LOOPBACK,),
            "identity": self.folder / f"identity-{self.count}",
            "threads": 1,
            "cache_tokens": 512,
        }
        told = Told()
        return Server(make_config(ServerConfig, **{**values, **changes}), on_event=told), told


def in_peace(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs the story; no task, thread, process or open file may be left."""
    before = set(threading.enumerate())
    run_in_peace(story())
    left = [one.name for one in threading.enumerate() if one not in before]
    assert not [name for name in left if name.startswith("swarm")]


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[RawClient]:
    identity = Identity.create()
    network = await Libp2pNetwork.create(identity, initial_peers=[server.address], client_only=True)
    checkpoint = await asyncio.to_thread(lambda: open_checkpoint(server.config.model).identity)
    client = RawClient(identity, network, checkpoint)
    await client.links.start()
    try:
        yield client
    finally:
        await client.links.close()
        await network.close()


def host(server: Server) -> Host:
    return Host(server.peer_id, server.span)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come; the test's own timeout ends it if it never does."""
    for _ in itertools.count():
        if condition():
            return
        await asyncio.sleep(0.02)
