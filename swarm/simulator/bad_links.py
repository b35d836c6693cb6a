"""Ways between two servers on which nothing passes for a while, or only slowly."""

from typing import TYPE_CHECKING

from swarm.routing.performance import ChainMode
from swarm.simulator.steps import Step
from swarm.spans import PeerId

if TYPE_CHECKING:
    from swarm.simulator.world import World

_Ends = frozenset[str]


class BadLinks:
    """In a relay chain servers do not send to each other, and nothing here happens."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._added_s: dict[_Ends, float | None] = {}
        """By how much a way is longer; None: nothing passes."""
        self._held: dict[_Ends, list[Step]] = {}

    def spoil(self, one: PeerId, other: PeerId, added_s: float | None) -> None:
        """From now on; None: nothing passes."""
        if self._world.scenario.inventory.mode is ChainMode.PUSH:
            self._added_s[frozenset((one, other))] = added_s

    def mend(self, one: PeerId, other: PeerId) -> None:
        """What was held back sets out now."""
        ends = frozenset((one, other))
        self._added_s.pop(ends, None)
        for step in self._held.pop(ends, ()):
            server = step.stages[step.at].server
            delay_s = self._world.delay_s(PeerId(step.stages[step.at].sender), server.peer)
            self._world.clock.after(delay_s, server.receive, step)

    def takes(self, step: Step, arrives: float) -> bool:
        """Whether a step, which would be at its next hop at `arrives`, goes over a bad link; then
        it is seen to here, and its client will notice that the next hop does not answer."""
        if not self._added_s:
            return False
        stage, clock = step.stages[step.at], self._world.clock
        ends = frozenset((stage.sender, stage.server.peer))
        if ends not in self._added_s:
            return False
        added_s = self._added_s[ends]
        if added_s is None:
            self._held.setdefault(ends, []).append(step)
        else:
            clock.at(arrives + added_s, stage.server.receive, step)
        silence_s = self._world.scenario.timing.silence_s
        clock.after(silence_s, self._look, step, step.at, clock.now)
        return True

    def _look(self, step: Step, at: int, sent: float) -> None:
        """Whether it has come meanwhile."""
        if step.epoch == step.session.epoch and step.at == at and step.waits_since <= sent:
            step.session.lost(step.stages[at].server.peer)
