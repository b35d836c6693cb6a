"""Loading a span in a thread of its own, and telling how far it is."""

import asyncio
from collections.abc import Callable

from swarm.server import telling
from swarm.server.config import ServerConfig
from swarm.server.events import EventSink
from swarm.server.hosted import Hosted, Plan, load
from swarm.server.loading import ProgressSteps, in_own_thread
from swarm.spans import Span


async def load_span(
    plan: Plan, span: Span, config: ServerConfig, threads: int, tell: EventSink
) -> Hosted:
    """Raises what `hosted.load` raises."""
    tell_fetched, tell_progress = _tellers(plan, span, tell)

    def work(check: Callable[[], None]) -> Hosted:
        fetched, steps = ProgressSteps(tell_fetched), ProgressSteps(tell_progress)

        def fetching(done: int, total: int) -> None:
            check()
            fetched(done, total)

        def progress(done: int, total: int) -> None:
            check()
            steps(done, total)

        return load(plan, span, config, threads, fetching, progress, check)

    return await in_own_thread(work)


async def fetch_span(plan: Plan, span: Span, tell: EventSink) -> None:
    """Has the files of these blocks here, if they are on a hub; raises what `load_span` raises."""
    tell_fetched, _ = _tellers(plan, span, tell)

    def work(check: Callable[[], None]) -> None:
        fetched = ProgressSteps(tell_fetched)

        def fetching(done: int, total: int) -> None:
            check()
            fetched(done, total)

        plan.checkpoint.fetch(plan.checkpoint.block_tensors(span).values(), fetching)

    await in_own_thread(work)


def _tellers(
    plan: Plan, span: Span, tell: EventSink
) -> tuple[Callable[[int, int], None], Callable[[int, int], None]]:
    loop = asyncio.get_running_loop()

    def tell_fetched(done: int, total: int) -> None:
        loop.call_soon_threadsafe(tell, telling.fetching_event(plan, span, done, total))

    def tell_progress(done: int, total: int) -> None:
        loop.call_soon_threadsafe(tell, telling.progress_event(plan, span, done, total))

    return tell_fetched, tell_progress
