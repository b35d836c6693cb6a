"""Whether sessions spread over servers that would have served them equally well."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from swarm.routing.inventory import Inventory
from swarm.routing.network import Floats
from swarm.routing.performance import ChainMode
from swarm.simulator.steps import Stage
from swarm.spans import PeerId

if TYPE_CHECKING:
    from swarm.simulator.server import SimulatedServer

NEAR_EQUAL = 0.05
"""Of a token's time over the whole chain, divided among its hops: who costs no more than that
beyond the best is an equal."""
SAME_CLASS = 0.25
"""Of a token's time at a hop with its ways: what is so near to the one that was taken is as far."""
MIN_SESSIONS = 20.0
"""Expected at a server before its ratio says something: with fewer, it is chance."""
MIN_ALIKE_SESSIONS = 40.0
"""The same where many servers are compared: of forty, one has 1.4 times as many by chance."""


class Shares:
    """What each server got of what it shared with others, and what would have been even."""

    def __init__(self) -> None:
        self.taken: defaultdict[int, int] = defaultdict(int)
        self.due: defaultdict[int, float] = defaultdict(float)

    def add(self, taken: int, sharing: Sequence[int]) -> None:
        """`taken` got what all of `sharing` (with it) could have had; one alone shares nothing."""
        if len(sharing) < 2 or taken not in sharing:
            return
        self.taken[taken] += 1
        for number in sharing:
            self.due[number] += 1 / len(sharing)

    def busiest(self, least: float) -> float | None:
        """Of the servers with at least so many sessions due, the busiest over its even share."""
        return max(
            (self.taken[number] / due for number, due in self.due.items() if due >= least),
            default=None,
        )


class EqualShares:
    """For each hop that a session opens: who could have served it as well, and who got it.

    The equals of a hop are the servers that are online, hold its blocks, tell the truth about their
    speed, and with which a decoded token would take at most `NEAR_EQUAL` (of the chain, divided
    among its hops) longer than with the best of them, in an idle swarm. Each of them should get an
    equal share. Hops with one such server, and hops that went to another one, do not count.

    That is what a router can know, and few servers are equals by it. By kind, the replicas of a
    server are those with its span and speed, behind a relay or not as it is, that are as far from
    the hop before and after (`SAME_CLASS`), whether they are the best or not.
    """

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._peers = [machine.peer for machine in inventory.machines]
        self._number = {peer: number for number, peer in enumerate(self._peers)}
        self._links = inventory.network.links(self._peers)
        self._pass_s = np.array([machine.speed.pass_s for machine in inventory.machines])
        self._block_s = (
            np.array([machine.speed.decode_s(1) for machine in inventory.machines]) - self._pass_s
        )
        self._relayed = np.array([machine.relayed for machine in inventory.machines])
        self._equals = Shares()
        self._alike = Shares()

    def took(
        self,
        client: PeerId,
        stages: Sequence[Stage],
        chosen: Sequence[int],
        able: "Sequence[SimulatedServer]",
    ) -> None:
        """A session runs over `stages`; `chosen`: those that are new; `able`: the servers that a
        session can have, without liars."""
        numbers = np.array([self._number[server.peer] for server in able], dtype=np.intp)
        start = np.array([server.span.start for server in able])
        end = np.array([server.span.end for server in able])
        costs = [self._costs(client, stages, at) for at in range(len(stages))]
        whole_s = sum(stage.decode_s for stage in stages) + sum(
            float(self._pass_s[number] + stage.blocks * self._block_s[number])
            for stage in stages
            for number in [self._number[stage.server.peer]]
        )
        for at in chosen:
            hop = stages[at].hop
            others = {self._number[one.server.peer] for one in stages if one is not stages[at]}
            holds = (start <= hop.start) & (hop.end <= end)
            holders = [number for number in numbers[holds].tolist() if number not in others]
            if not holders:
                continue
            cost = costs[at][holders]
            limit = cost.min() + NEAR_EQUAL * whole_s / len(stages)
            equals = [number for number, own in zip(holders, cost, strict=True) if own <= limit]
            taken = stages[at].server
            number = self._number[taken.peer]
            self._equals.add(number, equals)
            same = numbers[(start == taken.span.start) & (end == taken.span.end)]
            own = costs[at][number]
            alike = same[
                (self._block_s[same] == self._block_s[number])
                & (self._relayed[same] == self._relayed[number])
                & (np.abs(costs[at][same] - own) <= SAME_CLASS * own)
            ]
            self._alike.add(number, [each for each in alike.tolist() if each not in others])

    def busiest(self) -> float | None:
        """The sessions of the server that got the most of what it shared with equals, over its
        equal share; None where nobody shared enough to tell."""
        return self._equals.busiest(MIN_SESSIONS)

    def busiest_alike(self) -> float | None:
        """The same among replicas of one kind that are equally far."""
        return self._alike.busiest(MIN_ALIKE_SESSIONS)

    def shares(self) -> dict[PeerId, tuple[int, float]]:
        """Of each server that was one of several equals: the sessions that it got of those, and
        its equal share."""
        return {
            self._peers[number]: (self._equals.taken[number], due)
            for number, due in self._equals.due.items()
        }

    def _costs(self, client: PeerId, stages: Sequence[Stage], at: int) -> Floats:
        """`[machines]`: of a token at hop `at`, if the others stay: ways to it and from it (half of
        those that it shares with a hop), pass and blocks."""
        hop = stages[at].hop
        inside: Floats = self._pass_s + (hop.end - hop.start) * self._block_s
        if self._inventory.mode is ChainMode.RELAY:
            return inside + 2 * self._links.from_peer_s(client)
        before = client if at == 0 else stages[at - 1].server.peer
        after = client if at == len(stages) - 1 else stages[at + 1].server.peer
        return inside + self._links.from_peer_s(before) + self._links.from_peer_s(after)
