"""What a simulation found, as figures."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swarm.simulator.requests import Outcome, Request
from swarm.simulator.server import SimulatedServer
from swarm.spans import PeerId, Span


@dataclass(frozen=True)
class Spread:
    """Of many figures; seconds. None without any."""

    mean: float | None
    median: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread":
        """Of those that are there."""
        known = np.array([value for value in values if value is not None])
        if not len(known):
            return cls(None, None, None)
        median, p99 = np.percentile(known, [50, 99])
        return cls(float(known.mean()), float(median), float(p99))


@dataclass(frozen=True)
class ServerLoad:
    """What one server did."""

    machine: PeerId
    span: Span
    busy_share: float
    passes: int
    decode_blocks: int
    """Decoded tokens times blocks."""
    present_s: float
    """How long it was there."""
    block_s: float
    """What a block takes it in truth; equals have equal spans and speeds."""
    liar: bool
    relayed: bool = False


@dataclass(frozen=True)
class Result:
    """One policy in one scenario."""

    router: str
    seed: int
    requests: tuple[Request, ...]
    servers: tuple[ServerLoad, ...]
    simulated_s: float
    events: int
    uncovered_s: float
    busiest_equal: float | None
    """`EqualShares.busiest`."""
    busiest_alike: float | None
    """`EqualShares.busiest_alike`."""
    joins: int
    leaves: int
    faults: int

    def summary(self) -> dict[str, Any]:
        """What tables and `--json` show; times in seconds, deterministic for a seed."""
        done = [one for one in self.requests if one.outcome is Outcome.DONE]
        tokens = sum(one.tokens for one in self.requests)
        failures = Counter(one.failure for one in self.requests if one.failure)
        return {
            "router": self.router,
            "seed": self.seed,
            "requests": len(self.requests),
            "done": len(done),
            "failed": len(self.requests) - len(done),
            "failures": dict(failures.most_common()),
            "ttft_s": vars(Spread.of([one.ttft_s for one in done])),
            "tpot_s": vars(Spread.of([one.tpot_s for one in done])),
            "response_s": vars(Spread.of([one.response_s for one in done])),
            "longest_gap_s": max((one.longest_gap_s for one in done), default=0.0),
            "tokens_per_s": tokens / self.simulated_s if self.simulated_s else 0.0,
            "repairs": sum(one.repairs for one in self.requests),
            "moves": sum(one.moves for one in self.requests),
            "mean_hops": _mean([hops for one in self.requests for hops in one.hops]),
            "busiest_equal": self.busiest_equal,
            "busiest_alike": self.busiest_alike,
            "busiest_replica": busiest_replica(self.servers),
            "covered_share": 1 - self.uncovered_s / self.simulated_s if self.simulated_s else 1.0,
            "joins": self.joins,
            "leaves": self.leaves,
            "faults": self.faults,
            "simulated_s": self.simulated_s,
            "events": self.events,
        }


def busiest_replica(servers: Sequence[ServerLoad]) -> float | None:
    """Of servers with equal spans, speeds and ways to be reached the most loaded one, in decoded
    tokens a second, over their mean; the worst of all such groups. None without one. Liars are no
    equals of those that tell the truth. Where servers stand is left out: `EqualShares` sees that.

    Servers that were there for less than a tenth of the time do not count.
    """
    longest_s = max((server.present_s for server in servers), default=0.0)
    replicas: defaultdict[tuple[Span, float, bool], list[float]] = defaultdict(list)
    for server in servers:
        if server.present_s > 0.1 * longest_s and not server.liar:
            rate = server.decode_blocks / server.present_s
            replicas[server.span, server.block_s, server.relayed].append(rate)
    ratios = [
        max(rates) * len(rates) / sum(rates)
        for rates in replicas.values()
        if len(rates) > 1 and sum(rates) > 0
    ]
    return max(ratios, default=None)


def load_of(server: SimulatedServer, now: float, *, liar: bool, relayed: bool) -> ServerLoad:
    """What a server did, at the end."""
    present_s = (now if server.left is None else server.left) - server.came
    return ServerLoad(
        machine=server.peer,
        span=server.span,
        busy_share=server.busy_s / present_s if present_s else 0.0,
        passes=server.passes,
        decode_blocks=server.decode_blocks,
        present_s=present_s,
        block_s=server.block_s,
        liar=liar,
        relayed=relayed,
    )


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None
