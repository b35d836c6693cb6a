"""A server's stay on one span: what serves it, from the loaded blocks until it is closed."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from swarm.scheduling.client_groups import ClientGroups
from swarm.scheduling.cost_model import CostModel
from swarm.server.backup_memory import backup_bytes
from swarm.server.config import ServerConfig
from swarm.server.engine import Engine
from swarm.server.engine_jobs import EngineResult
from swarm.server.free_memory import free_memory
from swarm.server.hosted import Hosted, Plan
from swarm.server.neighbourhood import Neighbourhood
from swarm.server.reception import Quotas
from swarm.server.reporting import OnlineParts, Reporter
from swarm.server.service import Hosting, Service
from swarm.server.status import LoopLag
from swarm.sessions.admission import Admission, headroom_tokens
from swarm.wire.links import Links
from swarm.wire.network import SwarmNetwork
from swarm.wire.shared_limits import link_memory_bytes
from swarm.wire.upload_limit import UploadLimit

logger = logging.getLogger("swarm.server")

ENGINE_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Place:
    """What a server keeps while it goes from one span to another."""

    config: ServerConfig
    plan: Plan
    network: SwarmNetwork
    neighbourhood: Neighbourhood
    threads: int
    lag: LoopLag
    status: Callable[[], Mapping[str, Any]]
    """The fields of a `StatusReply`."""


class Stay:
    """Serves what is loaded from `start` to `close`, in the event loop's thread."""

    def __init__(self, place: Place, hosted: Hosted) -> None:
        config, cache, blocks = place.config, hosted.cache, hosted.blocks
        loop = asyncio.get_running_loop()

        def on_results(results: list[EngineResult]) -> None:
            loop.call_soon_threadsafe(self.service.on_results, results)

        speed = hosted.speed
        costs = CostModel(
            speed.decode_ms_per_block * len(blocks.span) / 1e3, speed.prefill_tokens_per_s
        )
        groups = ClientGroups(config.known_clients)
        self._engine = Engine(
            blocks, cache, on_results, threads=place.threads, costs=costs, group_of=groups
        )
        self.service = Service(
            Hosting(place.network.peer_id, place.plan.identity, blocks.span, blocks.hidden_size),
            self._engine,
            Admission(
                cache.total_tokens,
                cache.page_tokens,
                cache.row_tokens,
                headroom_tokens(cache.total_tokens, cache.page_tokens),
            ),
            status=place.status,
            locate=place.neighbourhood.look_round,
            quotas=Quotas(config.sessions_per_client, config.tokens_per_client, groups),
            backup_bytes=backup_bytes(
                config.backup_memory, cache.total_tokens * blocks.bytes_per_token
            ),
        )
        limit, upload = config.max_upload_mbit, None
        if limit is not None:
            upload = UploadLimit(limit * 1e6 / 8, loop)
        self.links = Links(
            place.network,
            self.service,
            memory_bytes=link_memory_bytes(free_memory("cpu").size_bytes),
            upload=upload,
            groups=groups,
        )
        self.reporter = Reporter(
            OnlineParts(
                place.network.peer_id,
                config,
                place.plan,
                blocks.span,
                hosted,
                self.service,
                self._engine,
                self.links,
                place.neighbourhood,
            ),
            place.lag,
        )

    @property
    def can_compute(self) -> bool:
        """False: the engine's thread has ended, which it never should."""
        return self._engine.alive

    async def start(self) -> None:
        """From now on peers may come."""
        self._engine.start()
        self.service.start(self.links)
        await self.links.start()

    async def hand_over(self, timeout_s: float, hurry: asyncio.Event) -> None:
        """Lets nobody new in and has the sessions moved to other servers; returns when the last has
        ended, at the latest after `timeout_s` or when `hurry` is set."""
        self.service.refuse_new_sessions()
        if not self.service.session_count:
            return
        waits = [
            asyncio.ensure_future(self.service.hand_over()),
            asyncio.ensure_future(hurry.wait()),
        ]
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def close(self) -> None:
        """Ends what is left, and lets go of the blocks; each part also when another fails."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._stop_engine)
            stack.push_async_callback(self.links.close)
            await self.service.close()

    async def _stop_engine(self) -> None:
        if not await asyncio.to_thread(self._engine.stop, ENGINE_STOP_TIMEOUT_S):
            logger.warning("a pass is still running; the engine's thread is left to it")
