"""Which grants a hop takes."""

from typing import Any

import msgspec
import pytest
from session_samples import CLIENT, HOPS, make_grant

from swarm.sessions.grants import check_grant
from swarm.sessions.messages import Grant, Hop, RefuseKind, decode_grant, encode
from swarm.spans import PeerId, Span


def refused(grant: Grant, hop: int = 1, **changes: Any) -> RefuseKind | None:
    asked: dict[str, Any] = {
        "me": HOPS[1],
        "announced_span": Span(5, 25),
        "checkpoint": "checkpoint",
        "sender": CLIENT,
    }
    why = check_grant(grant, hop, **asked | changes)
    return why[0] if why is not None else None


def test_a_sound_grant_is_taken() -> None:
    assert refused(make_grant()) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"me": HOPS[0]}, RefuseKind.BAD_GRANT),
        ({"sender": HOPS[0]}, RefuseKind.BAD_GRANT),
        ({"hop": 5}, RefuseKind.BAD_GRANT),
        ({"checkpoint": "another one"}, RefuseKind.WRONG_CHECKPOINT),
        ({"announced_span": Span(0, 19)}, RefuseKind.WRONG_SPAN),
    ],
)
def test_a_grant_for_another_server_is_refused(changes: dict[str, Any], why: RefuseKind) -> None:
    assert refused(make_grant(), **changes) is why


@pytest.mark.parametrize(
    "hops",
    [
        (Hop(HOPS[0], 1, 10), Hop(HOPS[1], 10, 20)),
        (Hop(HOPS[0], 0, 9), Hop(HOPS[1], 10, 20)),
        (Hop(HOPS[0], 0, 11), Hop(HOPS[1], 10, 20)),
        (Hop(HOPS[0], 0, 10), Hop(HOPS[1], 10, 10)),
        (Hop(HOPS[1], 0, 10), Hop(HOPS[1], 10, 20)),
        (Hop(CLIENT, 0, 10), Hop(HOPS[1], 10, 20)),
    ],
)
def test_a_route_with_a_hole_or_a_peer_twice_is_refused(hops: tuple[Hop, ...]) -> None:
    grant = msgspec.structs.replace(make_grant(), hops=hops)
    assert refused(grant) is RefuseKind.BAD_GRANT


def test_an_unknown_dtype_is_refused() -> None:
    assert refused(msgspec.structs.replace(make_grant(), dtype="int8")) is RefuseKind.BAD_GRANT


def test_a_grant_beyond_the_limits_cannot_be_read() -> None:
    for changes in ({"rows": 0}, {"rows": 257}, {"length": 1 << 21}, {"lifetime_s": 0.0}):
        grant = msgspec.structs.replace(make_grant(), **changes)
        with pytest.raises(msgspec.DecodeError):
            decode_grant(encode(grant))
    hops = tuple(Hop(PeerId(f"server-{i:04}"), i, i + 1) for i in range(33))
    with pytest.raises(msgspec.DecodeError):
        decode_grant(encode(msgspec.structs.replace(make_grant(), hops=hops)))
