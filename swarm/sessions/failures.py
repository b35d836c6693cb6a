"""The errors that a client raises for its session: what happened, where, and the way out."""

from swarm.errors import (
    NotFiniteError,
    PeerTimeoutError,
    SessionClosedError,
    SessionError,
    SessionFullError,
    SessionLostError,
    StepRejectedError,
    SwarmError,
)
from swarm.sessions.messages import Fail, FailKind, Grant
from swarm.spans import PeerId

_KINDS: dict[FailKind, type[SessionError]] = {
    FailKind.REJECTED: StepRejectedError,
    FailKind.NOT_FINITE: NotFiniteError,
}
"""All others: SessionLostError."""


def name_of(grant: Grant) -> str:
    return f"session {grant.session.hex()[:8]}"


def hop_error(grant: Grant, kind: type[SessionError], peer: str, text: str) -> SessionError:
    """The session cannot go on because of `peer`."""
    blocks = next((f"{hop.start}:{hop.end}" for hop in grant.hops if hop.peer == peer), None)
    return kind(
        f"{name_of(grant)}, blocks {blocks}: {text}; open a new session",
        session=grant.session,
        peer=peer,
        blocks=blocks,
    )


def reported(grant: Grant, sender: PeerId, fail: Fail) -> SessionError:
    """What a hop has said in a `Fail`, also about the next one."""
    kind = _KINDS.get(fail.why, SessionLostError)
    return hop_error(grant, kind, fail.peer or sender, f"{sender}: {fail.why}: {fail.detail}")


def timed_out(grant: Grant, deadline_s: float, waits_for: str) -> SwarmError:
    """Nothing has come for `deadline_s` seconds while the client waited for `waits_for`."""
    route = ", ".join(f"{hop.peer} ({hop.start}:{hop.end})" for hop in grant.hops)
    return PeerTimeoutError(
        f"{name_of(grant)} has waited {deadline_s:g} s for {waits_for} over {route}; "
        "open a new session",
        grant.hops[-1].peer,
    )


def rejected(grant: Grant, text: str) -> StepRejectedError:
    """The user's own step cannot be."""
    return StepRejectedError(f"{name_of(grant)}: {text}", session=grant.session)


def full(grant: Grant, longest: int) -> SessionFullError:
    """A row would need `longest` slots."""
    return SessionFullError(
        f"{name_of(grant)} has room for {grant.length} tokens a row, and {longest} are needed; "
        "open it with a greater length",
        session=grant.session,
    )


def closed(grant: Grant, error: SwarmError | None) -> SessionClosedError:
    why = "is closed" if error is None else f"has failed: {error}"
    return SessionClosedError(f"{name_of(grant)} {why}; open a new one", session=grant.session)
