"""What happens to a session, and what its state machines answer: plain data, no I/O."""

from dataclasses import dataclass
from typing import Any, TypeAlias

from swarm.errors import SessionError
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Fail, Gap, Holds, Message, Output, Step
from swarm.spans import PeerId

# ---- events


@dataclass(frozen=True)
class Received:
    """A message about the session came from `sender`. `payload`: its tensors, opaque here."""

    sender: PeerId
    message: Message
    payload: Any = None


@dataclass(frozen=True)
class PassDone:
    """The engine finished the pass that `Compute` asked for."""

    epoch: int
    seq: int
    output: Any
    """Encoded activations `[sum(counts), hidden_size]`; opaque here."""
    compute_ms: float = 0.0
    queue_ms: float = 0.0


@dataclass(frozen=True)
class PassFailed:
    """The engine could not do the pass; the session cannot go on at this hop."""

    epoch: int
    seq: int
    error: Fail


@dataclass(frozen=True)
class PeerLost:
    """The link to `peer` is gone for longer than the grace time, or the peer restarted."""

    peer: PeerId
    detail: str


@dataclass(frozen=True)
class Tick:
    """Time has passed; deadlines are looked at."""


Event: TypeAlias = Received | PassDone | PassFailed | PeerLost | Tick

# ---- instructions


@dataclass(frozen=True)
class Compute:
    """Put this step into the engine's queue. The engine applies `step.operation` first.

    `first_of_epoch`: the step's operation has not been applied here yet.
    """

    step: Step
    payload: Any
    service_class: ServiceClass
    first_of_epoch: bool


@dataclass(frozen=True)
class Forward:
    """Send `message` with `payload` to `to`.

    `rows`: which part of the payload to send: per row `(skip, take)` tokens; None: all of it.
    """

    to: PeerId
    message: Message
    payload: Any = None
    rows: tuple[tuple[int, int], ...] | None = None
    service_class: ServiceClass = ServiceClass.CONTROL


@dataclass(frozen=True)
class Free:
    """Give back the session's room and forget it."""

    reason: str


@dataclass(frozen=True)
class Deliver:
    """Client: the answer to the user's step `ticket` is whole: `(output, payload)` in order."""

    ticket: int
    outputs: tuple[tuple[Output, Any], ...]


@dataclass(frozen=True)
class Raise:
    """Client: the session failed."""

    error: SessionError


Instruction: TypeAlias = Compute | Forward | Free | Deliver | Raise

__all__ = [
    "Compute",
    "Deliver",
    "Event",
    "Fail",
    "Forward",
    "Free",
    "Gap",
    "Holds",
    "Instruction",
    "PassDone",
    "PassFailed",
    "PeerLost",
    "Raise",
    "Received",
    "Tick",
]
