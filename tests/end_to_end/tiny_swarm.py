"""Servers of tiny random models on loopback, in one event loop of the test's own process."""

import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from tiny_models import save_tiny  # noqa: F401  (for the tests here)
from transformers import AutoModelForCausalLM as PlainAutoModel

from swarm import AutoModelForCausalLM, ClientSettings
from swarm.server.config import ServerConfig, make_config
from swarm.server.server import Server

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
DEADLINE_S = 60.0
"""Only so that a fault ends; nothing is decided by it."""
LOGITS_TOLERANCE = 1e-3

Result = TypeVar("Result")


class LoopThread:
    """An event loop in a thread; `run` waits for a coroutine there."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="tiny swarm")

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE_S)
        self.loop.close()


class TinySwarm:
    """Servers of one model folder; the first one begins the swarm, the others join it."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.servers: list[Server] = []
        self._thread = LoopThread()
        self._folder = tempfile.TemporaryDirectory(prefix="tiny-swarm-")
        self._count = 0

    def __enter__(self) -> Self:
        self._thread.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for server in reversed(list(self.servers)):
                self.stop(server)
        finally:
            self._thread.__exit__()
            self._folder.cleanup()

    @property
    def address(self) -> str:
        return self.servers[0].address

    def start(self, blocks: str, **changes: Any) -> Server:
        """A server that is online; `changes` are fields of `ServerConfig`."""
        self._count += 1
        values: dict[str, Any] = {
            "model": str(self.model),
            "blocks": blocks,
            "listen": (LOOPBACK,),
            "peers": (self.address,) if self.servers else (),
            "identity": Path(self._folder.name) / f"identity-{self._count}",
            "threads": 1,
            "cache_tokens": 2048,
            "drain_timeout_s": 0,
        }
        config = make_config(ServerConfig, **{**values, **changes})
        server = Server(config, on_event=lambda event: None)
        self._thread.run(server.start())
        self.servers.append(server)
        return server

    def stop(self, server: Server) -> None:
        self.servers.remove(server)
        self._thread.run(server.stop())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """In the servers' loop."""
        return self._thread.run(work)

    def statuses(self) -> list[dict[str, Any]]:
        """What `swarm-client status` would show of each server."""

        async def ask() -> list[dict[str, Any]]:
            return [server.status() for server in self.servers]

        return self.run(ask())

    def wait_until_free(self) -> None:
        """No session is left and every cache is whole again; fails if that never comes."""

        self.wait_until(lambda: not any(_held(server.status()) for server in self.servers))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Asks in the servers' loop, again and again; fails if it never becomes true."""

        async def ask() -> bool:
            return condition()

        deadline = time.monotonic() + DEADLINE_S
        while not self.run(ask()):
            assert time.monotonic() < deadline, self.statuses()
            time.sleep(0.05)


def _held(status: dict[str, Any]) -> bool:
    return bool(status["sessions"] or status["cache_tokens_free"] != status["cache_tokens_total"])


@contextmanager
def tiny_swarm(model: Path, *spans: str, **changes: Any) -> Iterator[TinySwarm]:
    """A swarm with a server for each span, all with `changes` in their `ServerConfig`."""
    with TinySwarm(model) as swarm:
        for span in spans:
            swarm.start(span, **changes)
        yield swarm


@contextmanager
def client_model(model: Path, address: str, **settings: Any) -> Iterator[Any]:
    """The swarm's model as a user has it; `settings` are fields of `ClientSettings`."""
    remote = AutoModelForCausalLM.from_pretrained(
        model, initial_peers=[address], settings=ClientSettings(**settings)
    )
    try:
        yield remote
    finally:
        remote.close()


def plain_model(folder: Path) -> Any:
    """The reference: plain transformers, float32."""
    return PlainAutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def some_ids(length: int, *, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Random ids of the tiny vocabulary, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 96, (rows, length), generator=generator)


def greedy(model: Any, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """Exactly `tokens` new ids, greedily."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    found: torch.Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return found
