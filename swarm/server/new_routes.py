"""The grant of a session's new route, which its client sends with a fence."""

from swarm.server.reception import Reception
from swarm.sessions.grants import check_grant
from swarm.sessions.hop import HopSession
from swarm.sessions.messages import Fence, Grant


def new_route(reception: Reception, hop: HopSession, fence: Fence) -> Grant | str:
    """The grant, or why it is none for `hop`. `fence`: from the session's client, with a grant."""
    assert fence.signed is not None
    grant = reception.read_grant(fence.signed)
    if grant is None:
        return "the new route's grant cannot be read, or its signature is not its client's"
    if grant.session != hop.grant.session:
        return "the new route is of another session"
    fault = check_grant(
        grant, fence.hop, reception.me, reception.span, reception.checkpoint, hop.client
    )
    return grant if fault is None else f"{fault[0]}: {fault[1]}"
