"""A client that sends what it is told to, whether that is sound or not, and keeps what comes."""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch

from swarm.sessions.grants import GRANT_CONTEXT
from swarm.sessions.messages import (
    Commit,
    Grant,
    Held,
    Hop,
    Message,
    Open,
    Output,
    SignedGrant,
    Step,
    Want,
    encode,
)
from swarm.spans import PeerId, Span
from swarm.wire.codecs import pack_tensors, unpack_tensors
from swarm.wire.identity import Identity
from swarm.wire.links import Links
from swarm.wire.network import Network

Kind = TypeVar("Kind")
_session_numbers = itertools.count(1)


class Host(Protocol):
    """A server, as its clients see it."""

    @property
    def peer(self) -> PeerId: ...
    @property
    def span(self) -> Span: ...


class RawClient:
    """No rules of its own; grants are signed and steps are packed as they should be."""

    def __init__(self, identity: Identity, network: Network, checkpoint: str) -> None:
        self.identity = identity
        self.network = network
        self.checkpoint = checkpoint
        """What its grants say."""
        self.links = Links(network, self)
        self.inbox: list[tuple[PeerId, Message, bytes]] = []
        self._arrived = asyncio.Event()

    @property
    def peer(self) -> PeerId:
        return self.identity.peer_id

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        self.inbox.append((peer, message, bytes(payload)))
        self._arrived.set()

    def on_link_lost(self, peer: PeerId, reason: str) -> None: ...

    async def receive(self, kind: type[Kind], timeout_s: float = 30.0) -> Kind:
        """The next message of this kind; others before it stay."""
        async with asyncio.timeout(timeout_s):
            while True:
                for index, (_, message, _) in enumerate(self.inbox):
                    if isinstance(message, kind):
                        del self.inbox[index]
                        return message
                self._arrived.clear()
                await self._arrived.wait()

    async def receive_output(self) -> tuple[Output, torch.Tensor | None]:
        """The next `Output`, with its tensor."""
        async with asyncio.timeout(30):
            while True:
                for index, (_, message, payload) in enumerate(self.inbox):
                    if isinstance(message, Output):
                        del self.inbox[index]
                        tensors = unpack_tensors(message.tensors, bytearray(payload))
                        return message, tensors.get("hidden")
                self._arrived.clear()
                await self._arrived.wait()

    def count(self, kind: type[Any]) -> int:
        return sum(isinstance(message, kind) for _, message, _ in self.inbox)

    def grant(self, servers: Sequence[Host], **changes: Any) -> Grant:
        values: dict[str, Any] = {
            "session": next(_session_numbers).to_bytes(16),
            "route": 0,
            "checkpoint": self.checkpoint,
            "hops": tuple(Hop(one.peer, one.span.start, one.span.end) for one in servers),
            "client": self.peer,
            "rows": 1,
            "length": 16,
            "dtype": "float32",
            "lifetime_s": 3600.0,
        }
        return Grant(**{**values, **changes})

    def sign(self, grant: Grant) -> SignedGrant:
        data = encode(grant)
        return SignedGrant(data, self.identity.sign(GRANT_CONTEXT + data))

    async def send(
        self, server: Host, message: Message, hidden: torch.Tensor | None = None
    ) -> None:
        await self.links.connect(server.peer, 5)
        buffers = [] if hidden is None else pack_tensors({"hidden": hidden})[1]
        session = getattr(message, "session", b"")
        self.links.send(server.peer, message, buffers, session=session)

    async def open(self, servers: Sequence[Host], **changes: Any) -> Grant:
        """A committed session over `servers`."""
        grant = self.grant(servers, **changes)
        signed = self.sign(grant)
        for hop, server in enumerate(servers):
            await self.send(server, Open(signed, hop))
            await self.receive(Held)
        for server in servers:
            await self.send(server, Commit(grant.session, grant.route))
        return grant

    def step(self, grant: Grant, hidden: torch.Tensor, start: int = 0, **changes: Any) -> Step:
        tokens = len(hidden)
        values: dict[str, Any] = {
            "session": grant.session,
            "epoch": 0,
            "seq": start,
            "starts": (start,),
            "counts": (tokens,),
            "position_ids": tuple(range(start, start + tokens)),
            "emit_from": (),
            "want": Want.ALL,
            "tensors": pack_tensors({"hidden": hidden})[0],
        }
        return Step(**{**values, **changes})

    async def push(
        self, server: Host, grant: Grant, hidden: torch.Tensor, start: int = 0, **changes: Any
    ) -> None:
        await self.send(server, self.step(grant, hidden, start, **changes), hidden)
