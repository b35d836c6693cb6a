"""What strangers say of themselves is shown only where it makes sense."""

import asyncio
import math
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from swarm.client.status import MAX_ASKED, best_status, swarm_status
from swarm.client.swarm import Swarm
from swarm.errors import PeerError
from swarm.routing.view import Numerics
from swarm.sessions.messages import StatusReply
from swarm.spans import Span


def _record(peer: str, span: str) -> Any:
    numerics = Numerics("float32", "int8")
    return SimpleNamespace(
        peer=peer, public_name="", span=Span.parse(span), state="online", numerics=numerics,
        sessions=0, moving_to=None, max_upload_mbit=0.0, version="1.0", protocol=2,
        decode_ms_per_block=1.0, prefill_tokens_per_s=100.0, cache_tokens_free=64,
        cache_tokens_total=64, queue_wait_ms=0.0,
    )  # fmt: skip


class FakeSwarm:
    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    async def servers(self, _checkpoint: str, _max_age_s: float) -> list[Any]:
        return [_record("liar", "0:2"), _record("gone", "2:3"), _record("honest", "3:4")]

    async def ask_status(self, record: Any, _timeout_s: float) -> Any:
        answer = self.answers[record.peer]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_lies_are_left_out_and_silence_is_shown() -> None:
    swarm: Any = FakeSwarm(
        {
            "liar": {
                "state": "on\x1b[31mline",
                "decode_ms_per_block": math.nan,
                "sessions": "many",
                "uptime_s": math.inf,
                "tasks": 5,
                "decode_share": 10**400,
                "backup_bytes": -1,
                "surprise": 1,
            },
            "gone": PeerError("no answer", "gone"),
            "honest": {"state": "online", "sessions": 3, "queue_wait_ms": 2, "uptime_s": 60},
        }
    )
    entry: Any = SimpleNamespace(checkpoint="c", model="m", num_blocks=4)
    found = asyncio.run(swarm_status(swarm, entry, 1.0))
    liar, gone, honest = found["servers"]
    assert (liar["state"], liar["decode_ms_per_block"], liar["sessions"]) == ("online", 1.0, 0)
    assert liar["tasks"] == 5 and "surprise" not in liar
    assert liar["decode_share"] is liar["backup_bytes"] is None
    assert gone["state"] == "unreachable" and gone["open_files"] is None
    assert (liar["uptime_s"], honest["uptime_s"], honest["max_upload_mbit"]) == (None, 60.0, None)
    assert (honest["sessions"], honest["queue_wait_ms"]) == (3, 2.0)
    assert (gone["quantization"], gone["device"]) == ("int8", "cpu")
    assert (gone["version"], gone["protocol"]) == ("1.0", 2)
    assert found["missing"] == ["2:3"]


def test_the_model_is_shown_whose_servers_answer() -> None:
    class TwoModels(FakeSwarm):
        async def servers(self, checkpoint: str, _max_age_s: float) -> list[Any]:
            return [_record(f"{checkpoint}{number}", "0:1") for number in range(3)]

    gone = {f"dead{number}": PeerError("no answer") for number in range(3)}
    swarm: Any = TwoModels({**gone, "live0": {}, "live1": {}, "live2": PeerError("no answer")})
    entries: Any = [
        SimpleNamespace(checkpoint=name, model=name, num_blocks=1) for name in ("dead", "live")
    ]
    assert asyncio.run(best_status(swarm, entries, 1.0))["model"] == "live"
    assert asyncio.run(best_status(swarm, [], 1.0))["model"] is None


def test_of_any_number_of_servers_a_few_are_asked_at_once() -> None:
    """Each is a connection, and made-up ones cost nothing."""

    class Crowded(FakeSwarm):
        asked: ClassVar[list[str]] = []

        async def servers(self, checkpoint: str, _max_age_s: float) -> list[Any]:
            return [_record(f"{checkpoint}-{number}", "0:1") for number in range(1000)]

        async def ask_status(self, record: Any, _timeout_s: float) -> Any:
            self.asked.append(record.peer)
            if record.peer.startswith("junk"):
                raise PeerError("no answer")
            return {"state": "online"}

    swarm: Any = Crowded({})
    junk = [SimpleNamespace(checkpoint=f"junk{i}", model="j", num_blocks=1) for i in range(15)]
    live: Any = SimpleNamespace(checkpoint="live", model="live", num_blocks=1)
    found = asyncio.run(swarm_status(swarm, live, 1.0))
    states = [server["state"] for server in found["servers"]]
    assert (states.count("online"), states.count("not asked")) == (MAX_ASKED, 1000 - MAX_ASKED)
    assert len(swarm.asked) == MAX_ASKED
    swarm.asked.clear()
    entries: Any = [*junk, live]
    found = asyncio.run(best_status(swarm, entries, 1.0))
    assert found["model"] == "live"
    assert sum(server["state"] == "online" for server in found["servers"]) == MAX_ASKED
    assert len(swarm.asked) <= 2 * MAX_ASKED


@pytest.mark.parametrize("status", [b"[" * 65536, b"\xff", b"null", b"{"])
def test_a_status_that_is_no_object_blames_the_peer(status: bytes) -> None:
    async def ask() -> None:
        swarm = Swarm.__new__(Swarm)
        swarm._requests = {}
        swarm._request_numbers = iter([7])
        swarm._loop = asyncio.get_running_loop()

        async def connect(*_: object) -> None: ...

        def send(_peer: str, message: Any) -> None:
            _, answer = swarm._requests[message.request]
            answer.set_result(StatusReply(message.request, status))

        swarm.connect, swarm.send = connect, send  # type: ignore[method-assign, assignment]
        await swarm.ask_status(_record("peer", "0:1"), 1.0)

    with pytest.raises(PeerError, match="not a JSON object"):
        asyncio.run(ask())
