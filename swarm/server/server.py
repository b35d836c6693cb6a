"""A volunteer's server from start to end: join, load, serve, drain, leave."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from swarm.dht.directory import Directory
from swarm.dht.distances import pack_next_hops
from swarm.dht.joining import join_directory
from swarm.dht.records import MAX_ADDRESSES, ServerRecord
from swarm.errors import SwarmError
from swarm.routing.moving import Mover
from swarm.routing.view import ServerState
from swarm.server import telling
from swarm.server.config import ServerConfig
from swarm.server.distances import Distances
from swarm.server.events import EventSink, ServerEvent, log_event, unfailing
from swarm.server.free_memory import free_memory
from swarm.server.hosted import Plan, make_plan
from swarm.server.hosting import check_memory
from swarm.server.identity_claim import claim_identity
from swarm.server.loading import in_own_thread
from swarm.server.memory import Budget
from swarm.server.mobility import Mobility, rules_for
from swarm.server.neighbourhood import Neighbourhood, short_name
from swarm.server.reachability import check_announced, join_addresses
from swarm.server.residence import Residence, Voice
from swarm.server.status import LoopLag, program_version
from swarm.server.stay import Place
from swarm.server.threads import pick_threads, raise_file_limit
from swarm.spans import PeerId, Span
from swarm.wire.entrance import enter
from swarm.wire.frames import PROTOCOL_VERSION
from swarm.wire.network import SwarmNetwork

logger = logging.getLogger("swarm.server")

WITHDRAW_TIMEOUT_S = 2.0
"""How long saying goodbye to the directory may take."""
SURVEY_S = 5.0
"""About how often some other servers are asked how far they are."""

Part = TypeVar("Part")


class Server:
    """Hosts a span of blocks from `start` to `stop`.

    `async with Server(ServerConfig(...)) as server:` serves inside the block and drains at its
    end. Each change of state is told to `on_event`, in the event loop's thread; what that raises
    is logged.
    """

    def __init__(self, config: ServerConfig, *, on_event: EventSink = log_event) -> None:
        self.config = config
        self.state = ServerState.OFFLINE
        self._tell = unfailing(on_event)
        self._threads = pick_threads(config.threads)
        self._lag = LoopLag()
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._plan: Plan | None = None
        self._network: SwarmNetwork | None = None
        self._directory: Directory | None = None
        self._neighbourhood: Neighbourhood | None = None
        self._distances: Distances | None = None
        self._mobility: Mobility | None = None
        self._moves: asyncio.Task[None] | None = None
        self._residence: Residence | None = None

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
        return _made(_made(self._residence).span)

    @property
    def bytes_read(self) -> int:
        """Of tensors in the checkpoint's files."""
        return _made(self._plan).checkpoint.bytes_read

    def status(self) -> dict[str, Any]:
        """The fields of `swarm-client status --json` for this server."""
        stay = _made(self._residence).stay
        if stay is None:
            return telling.away_status(self.peer_id, self.config.name, self.span, self.state)
        goes_to = self._going_to
        moving_to = None if goes_to is None else str(goes_to)
        return {**stay.reporter.status(self.state), "moving_to": moving_to}

    def tell_now(self) -> None:
        """Tells a `stats` event, with `Reporter.report`; nothing before the server is online, and
        while it moves."""
        stay = None if self._residence is None else self._residence.stay
        if stay is not None:
            self._tell(telling.stats_event(stay.reporter.report(self.state)))

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
            # Not in a thread: who is cancelled while it waits would keep the identity locked.
            claimed = claim_identity(self.config.identity)
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
            residence, span = await self._choose()
            self._stack.push_async_callback(residence.leave)
            await residence.serve(span)
            self._go_on(residence)
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
        self._distances = Distances(self._directory, self.peer_id, random.Random())
        self._neighbourhood = Neighbourhood(
            self._directory, _made(self._plan), self._tell, self._distances
        )
        model = f"{self.config.model} " if self.config.model else ""
        command = f"swarm-server {model}--peers {self.address}"
        self._tell(telling.listening_event(self.addresses, self.peer_id, command))
        for advice in telling.forwarding_events(self.config, _made(self._network).addresses):
            self._tell(advice)

    async def _choose(self) -> tuple[Residence, Span]:
        """Which blocks; from then on others read that we are joining with them."""
        if self.config.peers:
            await _made(self._neighbourhood).check_model()
        place = Place(
            self.config,
            _made(self._plan),
            _made(self._network),
            _made(self._neighbourhood),
            self._threads,
            self._lag,
            self.status,
        )
        self._residence = residence = Residence(
            place, Voice(self._tell, self._change_state, self._hurry)
        )
        span = await residence.choose(self._budget())
        if residence.may_move:
            self._mobility = self._make_mobility(residence)
        return residence, span

    def _go_on(self, residence: Residence) -> None:
        """What runs as long as the server does."""
        neighbourhood, config = _made(self._neighbourhood), self.config
        self._stack.push_async_callback(self._cancel_tasks)
        pace_s = SURVEY_S
        if self._mobility is not None:
            pace_s = min(pace_s, config.move_check_s / 2)
            neighbourhood.on_missing = self._mobility.alarm
            self._moves = self._run("moves", self._mobility.watch())
        self._run("loop lag", self._lag.watch())
        self._run("rates", residence.sample())
        self._run("neighbourhood", neighbourhood.watch())
        self._run("distances", neighbourhood.survey(lambda: self.span, residence.linked_s, pace_s))
        self._run("engine", residence.can_compute())
        if config.stats_s is not None:
            self._run("stats", self._report_stats(config.stats_s))

    def _make_mobility(self, residence: Residence) -> Mobility:
        now = asyncio.get_running_loop().time()
        rules = rules_for(self.config.move_check_s)
        return Mobility(
            Mover(self.peer_id, rules, random.Random(), now=now),
            residence,
            read=_made(self._neighbourhood).living,
            mine=lambda: self._record().view(),
            announce=self._announce,
        )

    # ---- stopping

    async def _stop(self) -> None:
        if self._moves is not None:
            self._moves.cancel()
            await asyncio.gather(self._moves, return_exceptions=True)
        if not self._hurry.is_set():
            await self._drain()
        self.state = ServerState.OFFLINE
        await self._stack.aclose()
        self._tell(ServerEvent("stopped", "stopped"))

    async def _drain(self) -> None:
        stay = None if self._residence is None else self._residence.stay
        if stay is None:
            return
        timeout_s = self.config.drain_timeout_s
        self.state = ServerState.DRAINING
        self._tell(telling.draining_event(stay.service.session_count, timeout_s))
        announcing = asyncio.ensure_future(self._announce())
        await stay.hand_over(timeout_s, self._hurry)
        announcing.cancel()
        await asyncio.gather(announcing, return_exceptions=True)

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

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                logger.error("a task of the server failed", exc_info=result)

    # ---- telling the swarm and the operator

    async def _change_state(self, state: ServerState) -> bool:
        self.state = state
        return await self._announce()

    async def _announce(self) -> bool:
        """True: others took our record."""
        return await _made(self._directory).announce(self._record)

    def _record(self) -> ServerRecord:
        """What the directory says of us now; asked again for each refresh."""
        plan, suffix = _made(self._plan), f"/p2p/{self.peer_id}"
        residence = _made(self._residence)
        measured = {} if residence.stay is None else residence.stay.reporter.measured()
        distances, neighbourhood = _made(self._distances), _made(self._neighbourhood)
        return ServerRecord(
            peer=self.peer_id,
            span=self.span,
            state=self.state,
            checkpoint=plan.identity,
            model=short_name(plan.checkpoint.name),
            num_blocks=plan.checkpoint.num_blocks,
            block_digests=residence.block_digests,
            numerics=plan.numerics,
            public_name=self.config.name,
            max_upload_mbit=self.config.max_upload_mbit or 0.0,
            addresses=tuple(one.removesuffix(suffix) for one in self.addresses[:MAX_ADDRESSES]),
            version=program_version(),
            protocol=PROTOCOL_VERSION,
            coordinate=distances.coordinate,
            next_hops=pack_next_hops(distances.rtt_s(neighbourhood.following(self.span))),
            moving_to=None if self._going_to == self.span else self._going_to,
            may_move=self._may_move,
            **measured,
        )

    async def _report_stats(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            self.tell_now()

    # ---- small helpers

    def _budget(self) -> Budget:
        return Budget(free_memory(str(_made(self._plan).device)), self.config.max_memory)

    @property
    def _going_to(self) -> Span | None:
        return None if self._mobility is None else self._mobility.intent

    @property
    def _may_move(self) -> bool:
        """As others read it: not while it loads."""
        if self._mobility is None or self.state is not ServerState.ONLINE:
            return False
        return self._mobility.may_move(asyncio.get_running_loop().time())

    def _run(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.append(task)
        return task


def _made(part: Part | None) -> Part:
    if part is None:
        raise RuntimeError("the server is not running; use `async with Server(...)`")
    return part
