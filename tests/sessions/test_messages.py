"""Messages on the wire: all come back as they were, nothing else is taken."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from session_samples import HOPS, SESSION, make_grant, make_step, signed

from swarm.sessions.messages import (
    Close,
    Commit,
    Fail,
    FailKind,
    Fence,
    Gap,
    Held,
    Holds,
    Message,
    Open,
    Output,
    Refused,
    RefuseKind,
    Replay,
    RowOperation,
    StatusReply,
    StatusRequest,
    TensorSpec,
    Want,
    decode,
    decode_grant,
    encode,
)

ALL: list[Message] = [
    Open(signed(make_grant()), 2, 5.0, 1),
    Held(SESSION, 1, 2),
    Refused(SESSION, 1, RefuseKind.CACHE_FULL, "full", 7),
    Commit(SESSION, 1),
    Close(SESSION),
    make_step(3, 0, (1, 2), (1, 0), operation=RowOperation((0, 0), (1, 2)), emit_from=(1, 1)),
    Output(SESSION, 1, 2, (3,), (1,), (TensorSpec("hidden", "float32", (1, 8)),), 1.5, 0.0),
    Gap(SESSION, 1, 2, (3,), 4),
    Fail(SESSION, 1, FailKind.PEER_LOST, "cut", HOPS[2]),
    Fence(SESSION, 4, signed(make_grant()), 1, RowOperation(truncate_to=(1,))),
    Holds(SESSION, 4, 1, (5,), (0,), 3),
    Replay(SESSION, 4, 0, (0,), (5,), (5,), 2),
    StatusRequest(1),
    StatusReply(1, b"{}"),
]


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_messages_come_back(message: Message) -> None:
    assert decode(encode(message)) == message


def test_grants_come_back() -> None:
    assert decode_grant(encode(make_grant())) == make_grant()


@pytest.mark.parametrize(
    "changes",
    [
        {"session": b"short"},
        {"seq": -1},
        {"starts": (0,) * 257},
        {"starts": (1 << 21,)},
        {"position_ids": (0,) * 4097},
        {"want": "some"},
        {"emit_hop": 32},
        {"tensors": (TensorSpec("hidden", "float32", (1,) * 5),)},
        {"surprise": 1},
    ],
)
def test_what_is_beyond_the_limits_is_not_decoded(changes: dict[str, object]) -> None:
    fields = msgspec.to_builtins(make_step(0, 0, (0,), (1,)), builtin_types=(bytes,))
    data = msgspec.msgpack.encode(fields | changes)
    with pytest.raises(msgspec.DecodeError):
        decode(data)


@given(st.binary(max_size=200))
def test_junk_is_not_decoded(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(data)


@given(st.sampled_from(ALL), st.data())
def test_damaged_messages_decode_to_a_message_or_an_error(
    message: Message, data: st.DataObject
) -> None:
    damaged = bytearray(encode(message))
    for _ in range(3):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(damaged))
    except msgspec.DecodeError:
        return


def test_want_is_text_on_the_wire() -> None:
    assert msgspec.msgpack.decode(encode(make_step(0, 0, (0,), (1,))))["want"] == Want.ALL


def test_text_that_is_no_text_is_not_decoded() -> None:
    """As of everything else that is malformed: nobody who reads strangers' bytes asks for more."""
    grant = encode(make_grant()).replace(HOPS[0].encode(), b"\xff" * len(HOPS[0]))
    fail = encode(Fail(SESSION, 0, FailKind.INTERNAL, "detail")).replace(b"detail", b"d\xfftail")
    with pytest.raises(msgspec.DecodeError):
        decode_grant(grant)
    with pytest.raises(msgspec.DecodeError):
        decode(fail)
