"""Which servers have to move, and where, so that a swarm with a gap becomes whole again."""

from collections.abc import Collection, Sequence

from swarm.routing.coverage import Holder
from swarm.spans import PeerId, Span

MAX_HOLDERS = 200
"""With more of them a gap is closed by servers that hold nothing else."""


def fewest_moves(
    present: Sequence[Holder], movable: Collection[PeerId], num_blocks: int
) -> dict[PeerId, Span]:
    """The new spans of the fewest servers that make the swarm whole while all keep their order;
    empty if that cannot be, or none has to move.

    From the first block on, each server either stays, or moves to where those before it end: a
    dynamic program over (server, blocks reached). Every server computes the same answer from the
    same snapshot.
    """
    if len(present) > MAX_HOLDERS:
        return {}
    ordered = sorted(present, key=lambda one: (one.span, one.peer))
    reached: dict[int, tuple[int, tuple[tuple[PeerId, Span], ...]]] = {0: (0, ())}
    for one in ordered:
        following = dict(reached)
        for reach, (count, moves) in reached.items():
            if one.span.start <= reach < one.span.end:
                _keep(following, one.span.end, count, moves)
            if one.peer in movable and reach < num_blocks:
                start = min(reach, num_blocks - len(one.span))
                span = Span(start, start + len(one.span))
                if span != one.span:
                    _keep(following, span.end, count + 1, (*moves, (one.peer, span)))
        reached = following
    _, moves = reached.get(num_blocks, (0, ()))
    return dict(moves)


def _keep(
    reached: dict[int, tuple[int, tuple[tuple[PeerId, Span], ...]]],
    reach: int,
    count: int,
    moves: tuple[tuple[PeerId, Span], ...],
) -> None:
    if reach not in reached or count < reached[reach][0]:
        reached[reach] = count, moves
