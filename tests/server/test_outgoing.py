"""Links to the next hop: the directory helps, and never hinders."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from swarm.errors import PeerTimeoutError, UnreachablePeerError
from swarm.server.outgoing import Outgoing
from swarm.spans import PeerId
from swarm.wire.virtual_time import run

PEER = PeerId("a-server-00")


def test_the_directory_is_asked_only_after_what_is_known_and_may_fail() -> None:
    calls: list[str] = []
    lost: list[str] = []

    async def connect(peer: PeerId, timeout_s: float) -> None:
        calls.append("connect")
        if calls.count("connect") == 1:
            raise UnreachablePeerError("no address", peer=peer)

    async def locate() -> None:
        calls.append("locate")
        await asyncio.sleep(3)
        raise PeerTimeoutError("no directory", peer=PEER)

    async def main() -> None:
        links = SimpleNamespace(stats=lambda _: None, connect=connect)
        outgoing = Outgoing(
            cast(Any, links), locate, lambda _, why: lost.append(why), lambda *_: None
        )
        outgoing.prepare(PEER)
        await asyncio.sleep(20)
        await outgoing.close()

    run(main())
    assert calls == ["connect", "locate", "connect"]
    assert not lost
