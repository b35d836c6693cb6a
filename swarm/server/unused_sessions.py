"""Sessions that hold room and do not use it give way to those that wait for some."""

from collections.abc import Iterable

from swarm.sessions.admission import Admission
from swarm.sessions.hop import HopSession
from swarm.spans import SessionId

UNUSED_S = 900.0
"""A session that has had no step for so long is not used: longer than people think about their next
message, and than any step takes."""


def gives_way(
    sessions: Iterable[HopSession], admission: Admission, now: float
) -> HopSession | None:
    """The session that is to end now, because somebody waits for its room."""
    if not admission.line:
        return None
    unused = [hop for hop in sessions if now - hop.used_at >= UNUSED_S]
    unused.sort(key=lambda hop: hop.used_at)
    by_id = {SessionId(hop.grant.session): hop for hop in unused}
    session = admission.gives_way(by_id)
    return None if session is None else by_id[session]


def farewell(hop: HopSession, now: float) -> str:
    """What its client is told."""
    minutes = (now - hop.used_at) / 60
    return f"nobody has used it for {minutes:.0f} minutes, and others wait for its room"
