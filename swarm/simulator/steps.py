"""What travels over a simulated chain."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Hop

if TYPE_CHECKING:
    from swarm.simulator.server import SimulatedServer
    from swarm.simulator.session import SimulatedSession


@dataclass(slots=True, eq=False)
class Stage:
    """One hop of a route, and the way to it from the hop before."""

    server: "SimulatedServer"
    hop: Hop
    blocks: int
    sender: str
    """Who sends to it."""
    delay_s: float
    """One way, or over the client in a relay chain."""
    byte_s: float
    """Seconds a byte."""
    decode_s: float
    """The whole way of one decoded token with the hop's overhead."""


@dataclass(slots=True, eq=False)
class Step:
    """Activations of one session on their way through `stages`; the planner's `Work`."""

    session: "SimulatedSession"
    epoch: int
    """Steps of an older epoch than the session's are forgotten."""
    service_class: ServiceClass
    tokens: int
    context: int
    """Tokens that are cached before it."""
    stages: list[Stage]
    at: int = 0
    """Which of the stages has it, or will have it next."""
    done: int = 0
    """Tokens that are computed there, or in the pass that runs."""
    waits_since: float = 0.0
    """Since it came, or its last part was done."""

    @property
    def left(self) -> int:
        """Tokens that are not computed there yet."""
        return self.tokens - self.done

    @property
    def held(self) -> float:
        """Slots before the next token."""
        return self.context + self.done
