"""What a client may be told, and what is refused before anything is asked of a swarm."""

from math import inf, nan

import pytest

from swarm.client.settings import ClientSettings
from swarm.errors import UsageError
from swarm.sessions.messages import MAX_LIFETIME_S, Grant, Hop, decode_grant, encode


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step_timeout_s", 0),
        ("repair_timeout_s", -1),
        ("open_timeout_s", 0.0),
        ("missing_timeout_s", nan),
        ("connect_timeout_s", inf),
        ("session_lifetime_s", MAX_LIFETIME_S + 1),
        ("prefill_chunk_tokens", 0),
        ("prefill_chunk_tokens", 1025),
        ("window", 65),
        ("continuation_tokens", -1),
    ],
)
def test_a_setting_that_cannot_be_is_named(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        ClientSettings(**{name: value})  # type: ignore[arg-type]


def test_seconds_may_be_whole_numbers() -> None:
    assert ClientSettings(repair_timeout_s=120).repair_timeout_s == 120


def test_the_longest_lifetime_is_one_that_servers_can_read() -> None:
    settings = ClientSettings(session_lifetime_s=MAX_LIFETIME_S)
    grant = Grant(
        session=bytes(16),
        route=0,
        checkpoint="c" * 40,
        hops=(Hop("p" * 52, 0, 4),),
        client="q" * 52,
        rows=1,
        length=8,
        dtype="float32",
        lifetime_s=settings.session_lifetime_s,
    )
    assert decode_grant(encode(grant)) == grant
