"""What happens to a session, and what its state machines answer: plain data, no I/O."""

from dataclasses import dataclass
from typing import Any, TypeAlias

from swarm.errors import SwarmError
from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import Fail, FailKind, Fence, Grant, Message, Output, Step
from swarm.spans import PeerId

# ---- events


@dataclass(frozen=True)
class Received:
    """A message about the session came from `sender`. `payload`: its tensors, opaque here."""

    sender: PeerId
    message: Message
    payload: Any = None


@dataclass(frozen=True)
class RouteChanged:
    """A `Fence` with a new route came from `sender`.

    The caller has checked the signature, and with `check_grant` what the grant asks of this hop.
    """

    sender: PeerId
    fence: Fence
    grant: Grant


@dataclass(frozen=True)
class PassDone:
    """The engine finished the pass that `Compute` asked for."""

    epoch: int
    seq: int
    output: Any
    """Encoded activations `[sum(counts), hidden_size]`; opaque here."""
    compute_ms: float = 0.0
    queue_ms: float = 0.0
    output_bytes: int = 0
    """Size of `output`, for the account of what is kept to be sent again."""


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
class Stopping:
    """The peer itself ends the session, for instance because it shuts down."""

    why: FailKind
    detail: str


@dataclass(frozen=True)
class Leaving:
    """The peer itself will leave soon; it still serves, and asks the client to move the session."""

    detail: str


@dataclass(frozen=True)
class Tick:
    """Time has passed; deadlines are looked at."""


Event: TypeAlias = (
    Received | RouteChanged | PassDone | PassFailed | PeerLost | Stopping | Leaving | Tick
)

# ---- instructions


@dataclass(frozen=True)
class Compute:
    """Put this step into the engine's queue; a session's passes run in the order given.

    `first_of_epoch`: the engine applies `step.operation` before the pass: first `parents`, then
    `truncate_to`, which is always there then and equals `step.starts` (it also drops what passes of
    an older epoch have left behind). Whoever skips a pass of an older epoch must still apply its
    operation. Without `first_of_epoch` the step has no operation.
    """

    step: Step
    payload: Any
    service_class: ServiceClass
    first_of_epoch: bool


@dataclass(frozen=True)
class Part:
    """`tokens` tokens of an encoded payload, from token `first` on."""

    payload: Any
    first: int
    tokens: int


@dataclass(frozen=True)
class Forward:
    """Send `message` with `payload` to `to`. The sender fills in the message's `tensors`.

    `rows`: which part of the payload to send: per row of the pass `(skip, take)` tokens; None: all
    of it. `parts`: send these instead, one after the other (replays); None: `payload` counts.
    `size_bytes`: of what `payload` keeps in memory, for whoever keeps the instruction.
    """

    to: PeerId
    message: Message
    payload: Any = None
    rows: tuple[tuple[int, int], ...] | None = None
    service_class: ServiceClass = ServiceClass.CONTROL
    parts: tuple[Part, ...] | None = None
    size_bytes: int = 0


@dataclass(frozen=True)
class Free:
    """Give back the session's room and forget it.

    Its passes in the engine are void: a result that comes later must not reach a session that was
    opened anew under the same id.
    """

    reason: str


@dataclass(frozen=True)
class Deliver:
    """Client: the answer to the user's step `ticket`."""

    ticket: int
    output: Output
    payload: Any


@dataclass(frozen=True)
class Opened:
    """Client: every hop holds the session and has been told to keep it."""


@dataclass(frozen=True)
class NeedsRoute:
    """Client: `peer` is lost to the session, which rests until it is rerouted or closed."""

    peer: PeerId
    error: SwarmError


@dataclass(frozen=True)
class ShouldMove:
    """Client: `peer` serves the session still, but is about to leave."""

    peer: PeerId
    detail: str


@dataclass(frozen=True)
class Raise:
    """Client: the session failed; it is over, and the hops have been told to free it."""

    error: SwarmError


Instruction: TypeAlias = (
    Compute | Forward | Free | Deliver | Opened | NeedsRoute | ShouldMove | Raise
)
