"""What the interference benchmark changes in the product, in its own processes only.

An arm is what a link does with messages, a compute policy what the engine does with steps:

- `A`: a prompt's whole activation is one message for each hop; messages leave in the order in which
  they came, and as many bytes are handed to the transport as it takes.
- `A'`: the same order, but prompts are cut into the product's chunks.
- `B`: whole prompts as in A, but each message on a stream of its own, and the transport's
  multiplexing decides (`interference_streams.py`).
- `C`: the product.

`ours` is the product's compute policy; `fifo` takes steps in the order of arrival, `prefill first`
takes prompts before all else; both fill a pass up to its token limit. All can be switched while
nothing is on its way. A paced engine computes nothing, but sleeps for as long as a faster machine
would compute.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest.mock import patch

from swarm.models.slice import BlockSlice
from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.cost_model import PassSize, tokens_after
from swarm.scheduling.fair_queue import Entry, FairQueue
from swarm.scheduling.gathering import Gathering
from swarm.scheduling.link_window import MAX_FRAGMENT_BYTES, LinkWindow
from swarm.scheduling.pass_planner import PassPlanner, Plan, Share
from swarm.scheduling.prefill_chunks import chunk_tokens

ARMS = ("A", "A'", "B", "C")
COMPUTE = ("fifo", "prefill first", "ours")
WHOLE_PROMPT_TOKENS = 4096
PATIENCE_S = 300.0
"""Where what opens a session stands in line behind prompts, too, nobody gives up."""
_ENDLESS = 1 << 40
T = TypeVar("T")


@dataclass
class Chosen:
    """What this process does at present."""

    arm: str = "C"
    compute: str = "ours"
    whole_prompts: bool = False
    """Whether a prompt is one step, whatever the arm."""
    pass_s: float | None = None
    """A paced engine's pass takes so long, and `token_s` for each token; None: it computes."""
    token_s: float = 0.0

    @property
    def fifo_link(self) -> bool:
        return self.arm in ("A", "A'")

    @property
    def whole(self) -> bool:
        return self.whole_prompts or self.arm in ("A", "B")


CHOSEN = Chosen()


class ArrivalQueue(FairQueue[T]):
    """A FairQueue that also knows the order in which its entries came."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._came: dict[int, Entry[T]] = {}

    def push(self, entry: Entry[T], now: float = 0.0) -> None:
        super().push(entry, now)
        self._came[id(entry)] = entry

    def _forget(self, entry: Entry[T]) -> None:
        super()._forget(entry)
        del self._came[id(entry)]

    def in_order(self) -> Iterator[Entry[T]]:
        """Those that may be chosen, the oldest first; the queue may be changed meanwhile."""
        held = {id(entry) for line in self._held for entry in line.entries}
        return (entry for entry in list(self._came.values()) if id(entry) not in held)


class LinkQueue(ArrivalQueue[T]):
    """A link's: strictly in order of arrival in the arms A and A'."""

    def peek(
        self,
        now: float = 0.0,
        best: ServiceClass = ServiceClass.CONTROL,
        last: ServiceClass = ServiceClass.BULK,
    ) -> Entry[T] | None:
        if CHOSEN.fifo_link:
            return next(self.in_order(), None)
        return super().peek(now, best, last)

    def next_class(
        self,
        now: float,
        best: ServiceClass = ServiceClass.CONTROL,
        last: ServiceClass = ServiceClass.BULK,
    ) -> ServiceClass | None:
        if CHOSEN.fifo_link:
            oldest = next(self.in_order(), None)
            return None if oldest is None else oldest.service_class
        return super().next_class(now, best, last)


class ArmWindow(LinkWindow):
    """Without any limit of its own in the arms A and A'."""

    def fragment_bytes(self, decode_active: bool) -> int:
        return MAX_FRAGMENT_BYTES if CHOSEN.fifo_link else super().fragment_bytes(decode_active)

    def window_bytes(self, decode_active: bool) -> int:
        return _ENDLESS if CHOSEN.fifo_link else super().window_bytes(decode_active)

    def pause_s(self, now: float, decode_active: bool) -> float:
        return 0.0 if CHOSEN.fifo_link else super().pause_s(now, decode_active)


class ArmPlanner(PassPlanner[Any]):
    """The product's planner, or one of the other compute policies."""

    def __init__(self, queue: ArrivalQueue[Any], costs: Any, *, max_tokens: int) -> None:
        super().__init__(queue, costs, max_tokens=max_tokens)
        self._arrivals = queue

    def plan(self, now: float, most_steps: int | None = None) -> Plan[Any]:
        if CHOSEN.compute == "ours":
            return super().plan(now, most_steps)
        entries: Iterable[Entry[Any]] = self._arrivals.in_order()
        if CHOSEN.compute == "prefill first":
            entries = sorted(entries, key=lambda one: one.service_class <= ServiceClass.DECODE)
        return self._fill(entries, now)

    def _fill(self, entries: Iterable[Entry[Any]], now: float) -> Plan[Any]:
        """The first entries of each session, in this order, until the token limit is reached."""
        shares: list[Share[Any]] = []
        size = PassSize()
        seen = set()
        for entry in entries:
            room = self._max_tokens - size.tokens
            if room < 1:
                break
            if entry.session in seen:
                continue
            seen.add(entry.session)
            tokens = min(entry.item.left, room)
            last = tokens == entry.item.left
            added = tokens_after(entry.item.held, tokens)
            size += added
            self._queue.serve(entry, self._costs.marginal_s(added), now)
            shares.append(Share(entry, tokens, last))
            self._queue.hold(entry)
            if last:
                self._queue.finish(entry, now)
        self._queue.release(now)
        return Plan(tuple(shares), size)


class ArmGathering(Gathering):
    """A paced engine only seems to share its core: it sleeps."""

    def pass_ended(
        self, sessions: Iterable[bytes], wall_s: float, processor_s: float, now: float
    ) -> None:
        paced = CHOSEN.pass_s is not None
        super().pass_ended(sessions, wall_s, wall_s if paced else processor_s, now)


_forward = BlockSlice.forward


def _paced_forward(blocks: BlockSlice, hidden: Any, positions: Any, rows: Any, kv: Any) -> Any:
    if CHOSEN.pass_s is None:
        return _forward(blocks, hidden, positions, rows, kv)
    ends = time.perf_counter() + CHOSEN.pass_s + CHOSEN.token_s * hidden.shape[0]
    kv.begin(rows)
    time.sleep(max(0.0, ends - time.perf_counter()))
    return hidden.clone()


def patched_product(*, server: bool) -> ExitStack:
    """While it is open, this process follows `CHOSEN` in its links and its engine or steps."""
    replacements: list[tuple[str, object]] = [
        ("swarm.wire.outbox.FairQueue", LinkQueue),
        ("swarm.wire.link.LinkWindow", ArmWindow),
        # A whole prompt is one step.
        ("swarm.sessions.rules.MAX_STEP_TOKENS", WHOLE_PROMPT_TOKENS),
        ("swarm.sessions.asked.MAX_STEP_TOKENS", WHOLE_PROMPT_TOKENS),
    ]
    if server:
        replacements += [
            ("swarm.server.engine.FairQueue", ArrivalQueue),
            ("swarm.server.engine.PassPlanner", ArmPlanner),
            ("swarm.scheduling.decode_groups.Gathering", ArmGathering),
            ("swarm.models.slice.BlockSlice.forward", _paced_forward),
            ("swarm.server.service.LEASE_S", PATIENCE_S),
        ]
    else:
        replacements += [
            ("swarm.client.remote_session.chunk_tokens", _chosen_chunk_tokens),
            # A step that waits for seconds, as it does in arm A, is not asked for again.
            ("swarm.client.remote_session.Lateness.look", lambda *_: False),
            ("swarm.sessions.opening.ANSWER_S", PATIENCE_S),
        ]
    stack = ExitStack()
    for place, replacement in replacements:
        stack.enter_context(patch(place, replacement))
    return stack


def _chosen_chunk_tokens(tokens: int, hops: int) -> int:
    return WHOLE_PROMPT_TOKENS if CHOSEN.whole else chunk_tokens(tokens, hops)
