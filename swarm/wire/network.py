"""The one interface between links and whatever carries their bytes.

Two networks implement it: `swarm.wire.libp2p` (the real one) and `swarm.wire.memory` (in memory,
public, for tests of any code that runs on a swarm). It is made of callbacks and plain writes
rather than of coroutines, so that a small message crosses it without a task switch.
Everything here is called in the event loop's thread.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from swarm.spans import PeerId
from swarm.wire.identity import Identity


class StreamReceiver(Protocol):
    """Whoever reads a stream. Its methods are called by the stream and must not raise."""

    def bytes_received(self, data: bytes) -> None:
        """The next bytes, at least one; the pieces have nothing to do with the peer's writes."""

    def writable_again(self) -> None:
        """After a `write` returned False: the stream takes bytes again."""

    def stream_ended(self, reason: str) -> None:
        """The peer closed the stream, or it broke; called once, and not after our own `close`."""


class ByteStream(Protocol):
    """A duplex stream of bytes to one peer: in order, reliable while it lasts."""

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, as the network has authenticated it."""

    @property
    def address(self) -> str:
        """Where the other end is, as a multiaddress; empty if that is not known."""

    def start(self, receiver: StreamReceiver) -> None:
        """Begin to read. Called once; bytes that came before it are kept and handed over first.

        Not called back from within `start` itself.
        """

    def write(self, *parts: bytes | bytearray | memoryview) -> bool:
        """Takes all of `parts`, in order; they must not be changed afterwards.

        True: more may be written now. False: wait for `writable_again` first (what is written
        nevertheless is taken, and costs memory). On a stream that has ended or was closed it does
        nothing and returns False.
        """

    def pause_reading(self) -> None:
        """Nothing more is handed over until `resume_reading`, but what already is on its way; the
        peer can write as much as there is room for on the path. May be called at any time."""

    def resume_reading(self) -> None:
        """What came meanwhile is handed over, but not from within this call."""

    def close(self) -> None:
        """Ends the stream; what was written before still goes out if that takes no longer than
        about a second. May be called at any time and any number of times; no callback follows."""


class Network(Protocol):
    """A peer's access to all others."""

    on_stream: Callable[[ByteStream], None] | None
    """Called with each stream that a peer opened to us; None: such streams are closed."""

    @property
    def peer_id(self) -> PeerId:
        """Who we are."""

    @property
    def addresses(self) -> list[str]:
        """Where others can dial us; empty: nobody can, only we dial (a client)."""

    async def dial(self, peer: PeerId, timeout_s: float) -> ByteStream:
        """Opens a stream. That it opens does not mean that the peer lives: await its hello.

        Raises `UnreachablePeerError`, at the latest after `timeout_s`.
        """

    async def close(self) -> None:
        """Closes all streams; may be called any number of times."""


class SwarmNetwork(Network, Protocol):
    """What whole servers and clients need of a network, besides streams."""

    @property
    def identity(self) -> Identity:
        """The key of `peer_id`."""

    @property
    def client_only(self) -> bool:
        """Whether nobody can dial us."""

    def add_addresses(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Where `peer` may be found, for later dials; from others, so never an error."""
