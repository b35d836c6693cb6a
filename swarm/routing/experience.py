"""What a client's own requests say about servers' speeds, beside what these announce."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from swarm.routing.network import Floats
from swarm.routing.router import decode_block_s
from swarm.routing.view import ServerView, SwarmView
from swarm.spans import PeerId

_DOUBT = 1.0
"""Standard deviation of a factor before anything was measured."""
_MIN_DOUBT = 0.1
_FORGETS = 1.02
"""By which doubt grows with each answer: loads and machines change."""
_NOISE = 0.15
"""Of a measured time per token: waits come and go."""
_LEAST, _MOST = 0.8, 20.0


@dataclass(frozen=True)
class Share:
    """What one hop should take of each decoded token by its server's own word."""

    server: ServerView
    compute_s: float
    """Pass and wait."""


@dataclass(frozen=True)
class _Belief:
    announced_s: float
    """Per block, when the factor was found; what it counts as, if it announced nothing."""
    factor: float = 1.0
    doubt: float = _DOUBT


class Experience:
    """How many times as long as they announce servers take, by what this client saw.

    A client measures whole chains. Each time per token is one linear observation `y = sum(c_j f_j)`
    of the factors `f_j` of its servers, with `c_j` what they announced; a Kalman filter with a
    diagonal covariance puts the surprise on those servers that took the largest part and of which
    least is known. Whoever then announces another speed is still expected to take the time that
    was measured.
    """

    def __init__(self) -> None:
        self._beliefs: dict[PeerId, _Belief] = {}
        self._seen: dict[PeerId, tuple[ServerView, float, ServerView]] = {}

    def factor(self, server: ServerView) -> float:
        """How many times as long as it announces `server` is believed to take."""
        belief = self._beliefs.get(server.peer)
        if belief is None:
            return 1.0
        return _bounded(belief.factor * belief.announced_s / decode_block_s(server))

    def doubts(self, view: SwarmView) -> Floats:
        """`[servers]`: the standard deviation of each `factor`; 0 where nothing was measured."""
        beliefs = self._beliefs
        if not beliefs:
            return np.zeros(len(view.servers))
        known = (beliefs.get(server.peer) for server in view.servers)
        return np.array([0.0 if belief is None else belief.doubt for belief in known])

    def seen(self, view: SwarmView) -> SwarmView:
        """The snapshot with the speeds that are believed; of servers that were never asked, and
        where nothing has changed, the same objects."""
        if not self._beliefs:
            return view
        beliefs = self._beliefs
        return replace(
            view,
            servers=tuple(
                self._server(server) if server.peer in beliefs else server
                for server in view.servers
            ),
        )

    def observed(self, shares: Sequence[Share], compute_s: float) -> None:
        """A decoded token took its servers `compute_s` in all (without the ways between them).

        `shares`: by what the servers announce, not by what is believed.
        """
        if not 0 <= compute_s < math.inf:
            return
        known = [self._beliefs.get(share.server.peer) for share in shares]
        beliefs = [
            _Belief(
                decode_block_s(share.server),
                self.factor(share.server),
                belief.doubt if belief is not None else _DOUBT,
            )
            for share, belief in zip(shares, known, strict=True)
        ]
        expected_s = sum(s.compute_s * b.factor for s, b in zip(shares, beliefs, strict=True))
        variance = (_NOISE * max(compute_s, expected_s)) ** 2
        variance += sum((s.compute_s * b.doubt) ** 2 for s, b in zip(shares, beliefs, strict=True))
        if variance <= 0:
            return
        for share, belief in zip(shares, beliefs, strict=True):
            gain = belief.doubt**2 * share.compute_s / variance
            doubt = belief.doubt * math.sqrt(max(0.0, 1 - gain * share.compute_s))
            self._beliefs[share.server.peer] = replace(
                belief,
                factor=_bounded(belief.factor + gain * (compute_s - expected_s)),
                doubt=min(_DOUBT, max(_MIN_DOUBT, doubt) * _FORGETS),
            )

    def _server(self, server: ServerView) -> ServerView:
        factor = self.factor(server)
        kept = self._seen.get(server.peer)
        if kept is not None and kept[0] is server and kept[1] == factor:
            return kept[2]
        seen = replace(
            server,
            decode_ms_per_block=1e3 * decode_block_s(server) * factor,
            decode_fixed_ms=server.decode_fixed_ms * factor,
            decode_row_ms_per_block=server.decode_row_ms_per_block * factor,
            prefill_tokens_per_s=server.prefill_tokens_per_s / factor,
            queue_wait_ms=server.queue_wait_ms * factor,
        )
        self._seen[server.peer] = (server, factor, seen)
        return seen


def _bounded(factor: float) -> float:
    return min(_MOST, max(_LEAST, factor))
