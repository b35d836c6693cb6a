"""Asking one libp2p daemon for streams and connections, and the streams that it carries for us.

This speaks the daemon's own protocol, without hivemind's bindings, whose stream readers cost a task
switch for every message.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from swarm.errors import DaemonError
from swarm.spans import PeerId
from swarm.wire.daemon import Daemon
from swarm.wire.daemon_stream import DaemonStream, with_length
from swarm.wire.frames import PROTOCOL_VERSION

logger = logging.getLogger(__name__)

STREAM_PROTOCOL = f"/swarm/link/{PROTOCOL_VERSION}"


class DaemonRefusedError(Exception):
    """The daemon did not do it; the text is its reason. Never leaves the network."""


class DaemonControl:
    """All streams of one daemon. Methods raise OSError when the daemon is gone."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._listener: asyncio.Server | None = None
        self._streams: set[DaemonStream] = set()
        self._no_streams = asyncio.Event()
        self._on_stream: Callable[[DaemonStream], None] | None = None

    async def accept_streams(self, on_stream: Callable[[DaemonStream], None]) -> None:
        """From now on `on_stream` is called with each stream that a peer opens to us."""
        from hivemind.proto import p2pd_pb2
        from hivemind.utils.multiaddr import Multiaddr

        self._on_stream = on_stream
        path = str(self.daemon.folder / "streams")
        self._listener = await asyncio.get_running_loop().create_unix_server(
            lambda: self._new_stream(self._stream_came), path
        )
        handler = p2pd_pb2.StreamHandlerRequest(
            addr=Multiaddr(f"/unix{path}").to_bytes(), proto=[STREAM_PROTOCOL], balanced=False
        )
        try:
            await self._order(
                p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_HANDLER, streamHandler=handler)
            )
        except DaemonRefusedError as error:
            raise DaemonError(f"our libp2p daemon takes no streams: {error}") from error

    async def check(self) -> None:
        """Returns when the daemon has answered a question; it may say no."""
        from hivemind.proto import p2pd_pb2

        with contextlib.suppress(DaemonRefusedError):
            await self._order(p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY))

    async def open_stream(self, peer: PeerId, timeout_s: float) -> DaemonStream:
        """A new stream to `peer`. Raises DaemonRefusedError when it cannot be reached."""
        from hivemind.p2p import PeerID
        from hivemind.proto import p2pd_pb2

        wanted = p2pd_pb2.StreamOpenRequest(
            peer=PeerID.from_base58(peer).to_bytes(),
            proto=[STREAM_PROTOCOL],
            timeout=_whole_seconds(timeout_s),
        )
        stream, response = await self._ask(
            p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=wanted)
        )
        stream.identify_peer(peer, _text(response.streamInfo.addr))
        return stream

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> None:
        """Makes sure of a connection, at once if there is one; libp2p remembers the addresses.

        Raises DaemonRefusedError when the peer is at none of them.
        """
        from hivemind.p2p import PeerID
        from hivemind.proto import p2pd_pb2

        wanted = p2pd_pb2.ConnectRequest(
            peer=PeerID.from_base58(peer).to_bytes(),
            addrs=[packed for address in addresses if (packed := _packed(address))],
            timeout=_whole_seconds(timeout_s),
        )
        if not wanted.addrs:
            raise DaemonRefusedError(f"{', '.join(addresses)} cannot be dialled")
        await self._order(p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=wanted))

    async def flush(self) -> bool:
        """Closes all streams and waits until they are gone (each at the latest after
        `CLOSE_GRACE_S`). Whether there were any."""
        if not self._streams:
            return False
        for stream in list(self._streams):
            stream.close()
        await self._no_streams.wait()
        return True

    def break_off(self, reason: str) -> None:
        """Ends everything at once; readers of streams are told."""
        for stream in list(self._streams):
            stream.break_off(reason)
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # ---- inside

    def _new_stream(self, on_prelude: Callable[[DaemonStream, bytes | None], None]) -> DaemonStream:
        stream = DaemonStream(on_prelude, self._stream_gone)
        self._streams.add(stream)
        self._no_streams.clear()
        return stream

    def _stream_gone(self, stream: DaemonStream) -> None:
        self._streams.discard(stream)
        if not self._streams:
            self._no_streams.set()

    def _stream_came(self, stream: DaemonStream, prelude: bytes | None) -> None:
        from hivemind.p2p import PeerID
        from hivemind.proto import p2pd_pb2

        if prelude is not None and self._on_stream is not None:
            info = p2pd_pb2.StreamInfo.FromString(prelude)
            stream.identify_peer(PeerId(PeerID(info.peer).to_base58()), _text(info.addr))
            self._on_stream(stream)

    async def _order(self, request: Any) -> None:
        stream, _ = await self._ask(request)
        stream.close()

    async def _ask(self, request: Any) -> tuple[DaemonStream, Any]:
        """Sends a request over a new socket to the daemon; the socket after the response, and the
        response."""
        from hivemind.proto import p2pd_pb2

        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes | None] = loop.create_future()

        def came(_: DaemonStream, prelude: bytes | None) -> None:
            if not answer.done():
                answer.set_result(prelude)

        _, stream = await loop.create_unix_connection(
            lambda: self._new_stream(came), self.daemon.control_path
        )
        try:
            stream.write(with_length(request.SerializeToString()))
            prelude = await answer
            if prelude is None:
                raise ConnectionResetError("the libp2p daemon closed its socket")
            response = p2pd_pb2.Response.FromString(prelude)
            if response.type == p2pd_pb2.Response.ERROR:
                raise DaemonRefusedError(response.error.msg)
            return stream, response
        except BaseException:
            stream.abort()
            raise


def _packed(address: str) -> bytes:
    """A multiaddress as the daemon reads it; empty for one of kinds that its library lacks: others
    announce what they like."""
    from hivemind.utils.multiaddr import Multiaddr

    try:
        return bytes(Multiaddr(address).to_bytes())
    except Exception:
        logger.info("the address %s cannot be dialled", address)
        return b""


def _text(address: bytes) -> str:
    """Of a multiaddress as the daemon writes it; empty for one that cannot be read."""
    from hivemind.utils.multiaddr import Multiaddr

    try:
        return str(Multiaddr(address)) if address else ""
    except Exception:
        # Whatever its parser stumbles over: the peer is then one of those without an address.
        logger.info("our libp2p daemon names the address %s, which cannot be read", address.hex())
        return ""


def _whole_seconds(timeout_s: float) -> int:
    return max(1, round(timeout_s))
