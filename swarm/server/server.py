"""A volunteer's server from start to end: join, load, serve, drain, leave."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from swarm.dht.directory import Directory
from swarm.dht.joining import join_directory
from swarm.dht.records import MAX_ADDRESSES, ServerRecord
from swarm.errors import SwarmError
from swarm.routing.view import ServerState, SwarmView
from swarm.scheduling.cost_model import CostModel
from swarm.server import telling
from swarm.server.backup_memory import backup_bytes
from swarm.server.config import ServerConfig
from swarm.server.engine import Engine
from swarm.server.engine_jobs import EngineResult
from swarm.server.free_memory import free_memory
from swarm.server.hosted import Hosted, Plan, load, make_plan
from swarm.server.hosting import check_memory, choose_span
from swarm.server.identity_claim import claim_identity
from swarm.server.lifecycle import EventSink, ServerEvent, log_event
from swarm.server.loading import ProgressSteps, in_own_thread
from swarm.server.memory import Budget
from swarm.server.neighbourhood import Neighbourhood, short_name
from swarm.server.reachability import check_announced, join_addresses
from swarm.server.reception import Quotas
from swarm.server.reporting import Reporter, Serving
from swarm.server.service import Hosting, Service
from swarm.server.status import LoopLag, program_version
from swarm.server.threads import pick_threads, raise_file_limit
from swarm.sessions.admission import Admission
from swarm.spans import PeerId, Span
from swarm.wire.entrance import enter
from swarm.wire.frames import PROTOCOL_VERSION
from swarm.wire.links import Links
from swarm.wire.network import SwarmNetwork
from swarm.wire.upload_limit import UploadLimit

logger = logging.getLogger("swarm.server")

WITHDRAW_TIMEOUT_S = 2.0
"""How long saying goodbye to the directory may take."""
ENGINE_STOP_TIMEOUT_S = 10.0
ENGINE_WATCH_S = 1.0

Part = TypeVar("Part")


class Server:
    """Hosts a span of blocks from `start` to `stop`.

    `async with Server(ServerConfig(...)) as server:` serves inside the block and drains at its
    end. Each change of state is told to `on_event`, in the event loop's thread.
    """

    def __init__(self, config: ServerConfig, *, on_event: EventSink = log_event) -> None:
        self.config = config
        self.state = ServerState.OFFLINE
        self._tell = on_event
        self._threads = pick_threads(config.threads)
        self._lag = LoopLag()
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._plan: Plan | None = None
        self._span: Span | None = None
        self._hosted: Hosted | None = None
        self._network: SwarmNetwork | None = None
        self._directory: Directory | None = None
        self._neighbourhood: Neighbourhood | None = None
        self._service: Service | None = None
        self._engine: Engine | None = None
        self._reporter: Reporter | None = None

    # ---- what others may look at

    @property
    def address(self) -> str:
        """Where others join: a whole address with our peer id."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """All whole addresses that others may try, best first."""
        network = _made(self._network)
        return join_addresses(network.addresses, self.config.announce, network.peer_id)

    @property
    def peer_id(self) -> PeerId:
        return _made(self._network).peer_id

    @property
    def span(self) -> Span:
        """The blocks that are hosted."""
        return _made(self._span)

    @property
    def bytes_read(self) -> int:
        """Of tensors in the checkpoint's files."""
        return _made(self._plan).checkpoint.bytes_read

    def status(self) -> dict[str, Any]:
        """The fields of `swarm-client status --json` for this server."""
        return _made(self._reporter).status(self.state)

    def tell_now(self) -> None:
        """Tells a `stats` event, with `Reporter.report`; nothing before the server is online."""
        if self._reporter is not None:
            self._tell(telling.stats_event(self._reporter.report(self.state)))

    # ---- lifecycle

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop(drain=error is None)

    async def start(self) -> None:
        """Returns when the blocks are loaded, announced and served.

        Raises `UsageError` (blocks, address, memory, model), `CheckpointError`,
        `UnreachablePeerError`, `ProtocolVersionError` or `DaemonError`; everything is closed
        again then.
        """
        try:
            raise_file_limit()
            identity_path = self.config.identity
            claimed = await asyncio.to_thread(claim_identity, identity_path)
            self._stack.callback(claimed.release)
            check_announced(self.config.announce, claimed.identity.peer_id)
            if claimed.sibling > 1:
                self._tell(telling.sibling_event(claimed.sibling - 1, str(claimed.path)))
            await self._make_plan()
            self._network = await enter(
                claimed.identity,
                listen=self.config.listen,
                initial_peers=self.config.peers,
                announce=self.config.announce,
            )
            self._stack.push_async_callback(self._network.close)
            await self._join()
            await self._load()
            await self._serve()
        except BaseException:
            await self._stack.aclose()
            raise

    async def stop(self, *, drain: bool = True) -> None:
        """Says goodbye and closes everything. May be called again.

        With `drain`, running sessions first get `drain_timeout_s` to end, and nobody new is let
        in; a later call without it cuts that short.
        """
        if not drain:
            self._hurry.set()
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(), name="stopping")
        await asyncio.shield(self._stopping)

    async def failed(self) -> None:
        """Waits as long as the server can go on. Raises `SwarmError` when it cannot."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            raise SwarmError(
                f"the server's task {task.get_name()} has ended, which it never should; start again"
            ) from task.exception()

    # ---- starting

    async def _make_plan(self) -> None:
        """What can be known without the swarm, so that a mistake ends here, at once."""
        config = self.config
        self._tell(telling.opening_event(config.model))
        self._plan = plan = await in_own_thread(lambda _: make_plan(config))
        if plan.checkpoint.commit is not None:
            self._tell(telling.commit_event(plan))
        check_memory(config, plan.checkpoint, plan.needs, self._budget())

    async def _join(self) -> None:
        node = await join_directory(_made(self._network))
        self._stack.push_async_callback(node.close)
        self._directory = Directory(node)
        self._stack.push_async_callback(self._withdraw)
        self._neighbourhood = Neighbourhood(self._directory, _made(self._plan), self._tell)
        model = f"{self.config.model} " if self.config.model else ""
        command = f"swarm-server {model}--peers {self.address}"
        self._tell(telling.listening_event(self.addresses, self.peer_id, command))
        for advice in telling.forwarding_events(self.config, _made(self._network).addresses):
            self._tell(advice)

    async def _load(self) -> None:
        plan, config, threads = _made(self._plan), self.config, self._threads
        neighbourhood = _made(self._neighbourhood)
        view = SwarmView(plan.identity, plan.checkpoint.num_blocks, ())
        if config.peers:
            await neighbourhood.check_model()
            view = await neighbourhood.view()
        budget = self._budget()
        span = choose_span(config, plan.checkpoint, plan.needs, budget, view)
        self._span = span
        self._tell(telling.memory_event(plan, span, config, budget))
        await self._change_state(ServerState.JOINING)
        loop = asyncio.get_running_loop()

        def tell_progress(done: int, total: int) -> None:
            event = telling.progress_event(plan, span, done, total)
            loop.call_soon_threadsafe(self._tell, event)

        def tell_fetched(done: int, total: int) -> None:
            event = telling.fetching_event(plan, span, done, total)
            loop.call_soon_threadsafe(self._tell, event)

        def work(check: Callable[[], None]) -> Hosted:
            steps, fetched = ProgressSteps(tell_progress), ProgressSteps(tell_fetched)

            def fetching(done: int, total: int) -> None:
                check()
                fetched(done, total)

            def progress(done: int, total: int) -> None:
                check()
                steps(done, total)

            return load(plan, span, config, threads, fetching, progress, check)

        self._hosted = await in_own_thread(work)
        if config.peers:
            await neighbourhood.check_digests(span, self._hosted.block_digests)

    async def _serve(self) -> None:
        plan, hosted, cache = _made(self._plan), _made(self._hosted), _made(self._hosted).cache
        network, neighbourhood = _made(self._network), _made(self._neighbourhood)
        loop = asyncio.get_running_loop()

        def on_results(results: list[EngineResult]) -> None:
            loop.call_soon_threadsafe(service.on_results, results)

        speed, blocks = hosted.speed, len(hosted.blocks.span)
        costs = CostModel(speed.decode_ms_per_block * blocks / 1e3, speed.prefill_tokens_per_s)
        engine = Engine(hosted.blocks, cache, on_results, threads=self._threads, costs=costs)
        service = Service(
            Hosting(network.peer_id, plan.identity, self.span, hosted.blocks.hidden_size),
            engine,
            Admission(cache.total_tokens, cache.page_tokens, cache.row_tokens),
            status=self.status,
            locate=neighbourhood.look_round,
            quotas=Quotas(self.config.sessions_per_client, self.config.tokens_per_client),
            backup_bytes=backup_bytes(
                self.config.backup_memory, cache.total_tokens * hosted.blocks.bytes_per_token
            ),
        )
        limit, upload = self.config.max_upload_mbit, None
        if limit is not None:
            upload = UploadLimit(limit * 1e6 / 8, loop)
        links = Links(network, service, upload=upload)
        self._engine, self._service = engine, service
        self._reporter = reporter = Reporter(
            Serving(
                network.peer_id,
                self.config,
                plan,
                self.span,
                hosted,
                service,
                engine,
                links,
                neighbourhood,
            ),
            self._lag,
        )
        engine.start()
        self._stack.push_async_callback(self._stop_engine)
        service.start(links)
        self._stack.push_async_callback(links.close)
        self._stack.push_async_callback(service.close)
        await links.start()
        self._stack.push_async_callback(self._cancel_tasks)
        await self._change_state(ServerState.ONLINE)
        self._tell(telling.online_event(plan, self.span, hosted, self.address, network.peer_id))
        self._run("loop lag", self._lag.watch())
        self._run("rates", reporter.watch())
        self._run("neighbourhood", neighbourhood.watch())
        self._run("engine", _watch_engine(engine))
        if self.config.stats_s is not None:
            self._run("stats", self._report_stats(self.config.stats_s))

    # ---- stopping

    async def _stop(self) -> None:
        if self.state is ServerState.ONLINE and not self._hurry.is_set():
            await self._drain()
        self.state = ServerState.OFFLINE
        await self._stack.aclose()
        self._tell(ServerEvent("stopped", "stopped"))

    async def _drain(self) -> None:
        service, timeout_s = _made(self._service), self.config.drain_timeout_s
        self.state = ServerState.DRAINING
        self._tell(telling.draining_event(service.session_count, timeout_s))
        service.refuse_new_sessions()
        if not service.session_count:
            return
        waits = [
            asyncio.ensure_future(self._change_state(ServerState.DRAINING)),
            asyncio.ensure_future(service.hand_over()),
            asyncio.ensure_future(self._hurry.wait()),
        ]
        await asyncio.wait(waits[1:], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def _withdraw(self) -> None:
        """Others learn that we are gone, if they answer soon; else our record fades by itself."""
        directory = _made(self._directory)
        try:
            async with asyncio.timeout(WITHDRAW_TIMEOUT_S):
                await directory.withdraw()
        except (TimeoutError, SwarmError) as error:
            logger.info("the directory was left without goodbye: %r", error)
        finally:
            await directory.close()

    async def _stop_engine(self) -> None:
        if not await asyncio.to_thread(_made(self._engine).stop, ENGINE_STOP_TIMEOUT_S):
            logger.warning("a pass is still running; the engine's thread is left to it")

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                logger.error("a task of the server failed", exc_info=result)

    # ---- telling the swarm and the operator

    async def _change_state(self, state: ServerState) -> None:
        self.state = state
        await _made(self._directory).announce(self._record)

    def _record(self) -> ServerRecord:
        """What the directory says of us now; asked again for each refresh."""
        plan, suffix = _made(self._plan), f"/p2p/{self.peer_id}"
        measured = {} if self._reporter is None else self._reporter.measured()
        return ServerRecord(
            peer=self.peer_id,
            span=self.span,
            state=self.state,
            checkpoint=plan.identity,
            model=short_name(plan.checkpoint.name),
            num_blocks=plan.checkpoint.num_blocks,
            block_digests=b"" if self._hosted is None else self._hosted.block_digests,
            numerics=plan.numerics,
            public_name=self.config.name,
            max_upload_mbit=self.config.max_upload_mbit or 0.0,
            addresses=tuple(one.removesuffix(suffix) for one in self.addresses[:MAX_ADDRESSES]),
            version=program_version(),
            protocol=PROTOCOL_VERSION,
            **measured,
        )

    async def _report_stats(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            self.tell_now()

    # ---- small helpers

    def _budget(self) -> Budget:
        return Budget(free_memory(str(_made(self._plan).device)), self.config.max_memory)

    def _run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work, name=name))


async def _watch_engine(engine: Engine) -> None:
    """Returns when the engine's thread has ended: nothing can be computed any more."""
    while engine.alive:  # noqa: ASYNC110 (the end of a thread has no event)
        await asyncio.sleep(ENGINE_WATCH_S)


def _made(part: Part | None) -> Part:
    if part is None:
        raise RuntimeError("the server is not running; use `async with Server(...)`")
    return part
