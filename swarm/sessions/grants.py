"""Whether a hop may take a session: what its grant says against what the hop announces."""

import msgspec

from swarm.sessions.messages import Grant, RefuseKind
from swarm.spans import PeerId, Span

GRANT_CONTEXT = b"swarm grant v1\0"
"""Signed in front of every grant, so that no other signature can be taken for one."""
ACTIVATION_DTYPES = ("float32", "bfloat16", "float16")


def grant_fault(grant: Grant) -> str | None:
    """Why no honest client would sign `grant`; None: it is well formed."""
    for hop in grant.hops:
        if hop.start >= hop.end:
            return f"hop {hop.peer} has no blocks ({hop.start}:{hop.end})"
    if grant.hops[0].start != 0:
        return f"the route begins at block {grant.hops[0].start}, not at 0"
    for before, after in zip(grant.hops, grant.hops[1:], strict=False):
        if before.end != after.start:
            return f"the route leaves {before.peer} at {before.end} and goes on at {after.start}"
    if len({hop.peer for hop in grant.hops}) != len(grant.hops):
        return "the route visits a peer twice"
    if grant.client in {hop.peer for hop in grant.hops}:
        return "the client is a hop of its own route"
    if grant.dtype not in ACTIVATION_DTYPES:
        return f"activations in {grant.dtype}; {', '.join(ACTIVATION_DTYPES)} are served"
    return None


def check_grant(
    grant: Grant,
    hop: int,
    me: PeerId,
    announced_span: Span,
    checkpoint: str,
    sender: PeerId,
) -> tuple[RefuseKind, str] | None:
    """Why `me` cannot be hop number `hop` of `grant`, sent by `sender`; None: it can.

    Hops must be contiguous from block 0 on, each a different peer, and mine inside what I
    announce. Whether the last hop ends at the model's last block is the client's affair. The
    signature is checked by the caller, before this.
    """
    if sender != grant.client:
        return RefuseKind.BAD_GRANT, f"signed for {grant.client}, sent by {sender}"
    if (fault := grant_fault(grant)) is not None:
        return RefuseKind.BAD_GRANT, fault
    if hop >= len(grant.hops) or grant.hops[hop].peer != me:
        return RefuseKind.BAD_GRANT, f"hop {hop} of the route is not {me}"
    if grant.checkpoint != checkpoint:
        return RefuseKind.WRONG_CHECKPOINT, f"checkpoint {checkpoint} is served here"
    asked = Span(grant.hops[hop].start, grant.hops[hop].end)
    if not announced_span.covers(asked):
        return RefuseKind.WRONG_SPAN, f"blocks {announced_span} are served here, not {asked}"
    return None


def same_session(old: Grant, old_hop: int, new: Grant, new_hop: int) -> bool:
    """Whether two grants differ in their route and lifetime only, and a hop has the same blocks in
    both."""
    before, after = old.hops[old_hop], new.hops[new_hop]
    rest = msgspec.structs.replace(new, route=old.route, hops=old.hops, lifetime_s=old.lifetime_s)
    return rest == old and (before.start, before.end) == (after.start, after.end)
