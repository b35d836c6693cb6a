"""Messages of the libp2p daemon, in any pieces."""

import pytest

from swarm.wire.daemon_stream import MAX_PRELUDE_BYTES, split_message, with_length


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, MAX_PRELUDE_BYTES])
def test_a_message_of_the_daemon_is_read_in_any_pieces(size: int) -> None:
    framed = with_length(b"x" * size) + b"rest"
    whole = len(framed) - len(b"rest")
    for cut in {0, 1, 2, 3, whole // 2, max(0, whole - 1)} - set(range(whole, whole + 4)):
        assert split_message(framed[:cut]) is None
    assert split_message(framed) == (b"x" * size, b"rest")


@pytest.mark.parametrize("junk", [b"\xff" * 4, with_length(b"x" * (MAX_PRELUDE_BYTES + 1))])
def test_a_message_that_is_too_long_is_an_error(junk: bytes) -> None:
    with pytest.raises(ValueError, match="from the libp2p daemon"):
        split_message(junk)
