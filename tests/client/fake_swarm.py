"""Servers without a network, for sessions that open: they hold, refuse, are down, come back."""

import asyncio
import random
from dataclasses import dataclass, field

from swarm.client.agreement import Agreement
from swarm.client.opening import open_session
from swarm.client.routes import ClientRouter
from swarm.client.settings import ClientSettings
from swarm.client.target import Target
from swarm.client.troubles import Troubles
from swarm.dht.records import DIGEST_BYTES, ServerRecord
from swarm.errors import PeerTimeoutError, UnreachablePeerError
from swarm.routing.view import Numerics, ServerState
from swarm.sessions.grants import GRANT_CONTEXT
from swarm.sessions.messages import Held, Open, Refused, RefuseKind, decode_grant
from swarm.spans import Span
from swarm.wire.frames import PROTOCOL_VERSION
from swarm.wire.identity import Identity, verify

TARGET = Target("tiny", "c" * 40, 4, 8, "float32")
SETTINGS = ClientSettings(
    missing_timeout_s=0.3, open_timeout_s=3.0, connect_timeout_s=1.0, directory_refresh_s=60.0
)


SMALL_TOKENS = 100
"""What a server that answers `small` has room for."""


@dataclass
class Server:
    """One server of the fake swarm, and what it does when it is asked."""

    span: str
    answer: str = "hold"
    state: ServerState = ServerState.ONLINE
    identity: Identity = field(default_factory=Identity.create)
    sequence: int = 1
    protocol: int = PROTOCOL_VERSION
    digests: str = ""
    """A letter for each of its blocks; none: it announces no digests."""
    messages: list = field(default_factory=list)

    @property
    def peer(self):
        return self.identity.peer_id

    def record(self):
        return ServerRecord(
            peer=self.peer,
            span=Span.parse(self.span),
            state=self.state,
            checkpoint=TARGET.checkpoint,
            model="tiny",
            num_blocks=4,
            numerics=Numerics("float32"),
            cache_tokens_free=1000,
            cache_tokens_total=1000,
            version="1",
            protocol=self.protocol,
            sequence=self.sequence,
            block_digests=b"".join(letter.encode() * DIGEST_BYTES for letter in self.digests),
        )

    @property
    def kinds(self):
        return [type(message).__name__ for message in self.messages]


class FakeSwarm:
    """The part of `Swarm` that an opening uses."""

    def __init__(self, *servers, models=()):
        self.identity = Identity.create()
        self.settings = SETTINGS
        self.all = {server.peer: server for server in servers}
        self.listeners = {}
        self.rtts = {}
        self.troubles = Troubles()
        self.agreement = Agreement()
        self._models = models
        self.lookups = 0
        self.on_lookup = lambda: None
        self.on_silent = lambda: None

    @property
    def time(self):
        return asyncio.get_running_loop().time()

    async def servers(self, checkpoint, max_age_s=None):
        assert checkpoint == TARGET.checkpoint
        self.lookups += 1
        self.on_lookup()
        return tuple(server.record() for server in self.all.values())

    def known_servers(self, checkpoint):
        return tuple(server.record() for server in self.all.values())

    async def models(self):
        return self._models

    async def connect(self, record, timeout_s):
        if self.all[record.peer].answer == "down":
            raise UnreachablePeerError("down", record.peer)
        if self.all[record.peer].answer == "frozen":
            await asyncio.sleep(timeout_s)
            raise PeerTimeoutError("frozen", record.peer)
        self.rtts[record.peer] = 0.01

    async def connect_all(self, records, timeout_s):
        return {
            record.peer: UnreachablePeerError("down", record.peer)
            for record in records
            if self.all[record.peer].answer in ("down", "frozen")
        }

    def rtt_s(self, peers):
        return self.rtts

    def rate_bytes_per_s(self, peer):
        return None

    async def ask_status(self, record, timeout_s):
        raise PeerTimeoutError("busy", record.peer)

    def router(self, target):
        return ClientRouter(self.identity.peer_id, random.Random(), lambda: self.time)

    def hears(self, peer):
        return self.all[peer].answer != "mute"

    def has_link(self, peer):
        return self.all[peer].answer not in ("down", "frozen")

    def in_trouble(self):
        self.now = self.time
        suspected = self.troubles.suspected(self.now, lambda peer: 100.0)
        return self.troubles.left_out(self.now) | suspected

    def doubted(self, records, *, tell=False):
        for peer in self.rtts:
            self.agreement.reached(peer, "/ip4/127.0.0.1/tcp/1")
        return self.agreement.doubted(records, tell=tell)

    def attach(self, session, listener):
        self.listeners[session] = listener

    def detach(self, session):
        self.listeners.pop(session, None)

    def send(self, peer, message, payload=(), service_class=0, session=b""):
        server = self.all[peer]
        server.messages.append(message)
        if isinstance(message, Open) and server.answer in ("silent", "mute"):
            self.on_silent()
            if server.answer == "hold":
                asyncio.get_running_loop().call_soon(self._answer, server, message)
        elif isinstance(message, Open):
            asyncio.get_running_loop().call_soon(self._answer, server, message)

    def _answer(self, server, message):
        grant = decode_grant(message.signed.grant)
        data = GRANT_CONTEXT + message.signed.grant
        assert verify(self.identity.peer_id, data, message.signed.signature)
        fits = server.answer == "small" and grant.rows * grant.length <= SMALL_TOKENS
        if server.answer == "hold" or fits:
            answer = Held(grant.session, grant.route, message.attempt)
        else:
            why = RefuseKind("cache_full" if server.answer == "small" else server.answer)
            answer = Refused(grant.session, grant.route, why, "no", 0, message.attempt)
        listener = self.listeners.get(grant.session)
        if listener is not None:
            listener.received(server.peer, answer, memoryview(b""))


class NoRuntime:
    def call_soon(self, callback, *args):
        asyncio.get_running_loop().call_soon(callback, *args)


def open_on(swarm, rows=1, length=10):
    return asyncio.run(open_session(NoRuntime(), swarm, TARGET, rows, length))
