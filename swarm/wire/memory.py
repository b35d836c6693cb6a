"""A network in memory, with settable delay, bandwidth, loss, partitions and resets.

It is public: code that runs on a swarm can be tested on it without sockets, whole servers and
clients by `swarm.testing`, single peers in virtual time (`swarm.wire.virtual_time`). All its
networks belong to one event loop.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

from swarm.errors import UnreachablePeerError
from swarm.spans import PeerId
from swarm.wire.memory_stream import MemoryStream
from swarm.wire.network import ByteStream

RETRY_S = 0.25
"""How often a dial looks whether a partition has ended."""


@dataclass(frozen=True)
class Path:
    """What lies between two peers, in each direction."""

    delay_s: float = 0.0
    """One way."""
    jitter_s: float = 0.0
    """Each write takes up to so much longer, and what is behind it comes no sooner."""
    bandwidth_bytes_per_s: float = float("inf")
    """Shared by all streams of the pair."""
    buffer_bytes: int = 256 * 1024
    """A stream with more bytes on their way than this cannot be written to."""
    loss: float = 0.0
    """The probability that a write is lost once and comes `stall_s` late, with all behind it."""
    stall_s: float = 0.2
    shortest_piece: int | None = None
    """Cut what arrives at random into pieces of at least so many bytes; None: leave it whole."""


_hubs: "WeakValueDictionary[str, MemoryNetworkHub]" = WeakValueDictionary()
_hub_numbers = count(1)


def hub_at(address: str) -> "MemoryNetworkHub | None":
    """The hub of this process with this `address`; None if it is gone."""
    return _hubs.get(address)


class MemoryNetworkHub:
    """All peers of one in-memory network, and what lies between them."""

    def __init__(self, seed: int = 0, path: Path | None = None) -> None:
        self.address = f"/memory/{next(_hub_numbers)}"
        """Names the network within this process; a peer's address adds `/p2p/` and its id."""
        _hubs[self.address] = self
        self.loop: asyncio.AbstractEventLoop | None = None
        """The one that whole servers and clients share; set by the first of them."""
        self.random = random.Random(seed)
        self._default_path = path or Path()
        self._paths: dict[frozenset[PeerId], Path] = {}
        self._networks: dict[PeerId, MemoryNetwork] = {}
        self._held: set[tuple[PeerId, PeerId]] = set()
        """Directions in which nothing arrives."""
        self._isolated: set[PeerId] = set()
        """Peers that nothing reaches, and that reach nobody."""
        self._busy_until: dict[tuple[PeerId, PeerId], float] = {}
        self._addresses: dict[PeerId, str] = {}
        self._downlinks: dict[PeerId, float] = {}
        self._downlink_busy_until: dict[PeerId, float] = {}
        self._streams: set[MemoryStream] = set()

    def network(self, peer_id: PeerId, *, listens: bool = True) -> "MemoryNetwork":
        """A new peer. `listens=False`: a client, which nobody can dial."""
        network = MemoryNetwork(self, peer_id, listens)
        self.enter(network)
        return network

    def enter(self, network: "MemoryNetwork") -> None:
        """Takes in a peer. Raises ValueError if there is one with its id."""
        if network.peer_id in self._networks:
            raise ValueError(f"{network.peer_id} is in the network already; close that one first")
        self._networks[network.peer_id] = network

    def path(self, a: PeerId, b: PeerId) -> Path:
        return self._paths.get(frozenset((a, b)), self._default_path)

    def set_path(self, a: PeerId, b: PeerId, **changes: Any) -> None:
        """Changes fields of `Path` between `a` and `b`, from now on."""
        self._paths[frozenset((a, b))] = replace(self.path(a, b), **changes)

    def set_default_path(self, **changes: Any) -> None:
        """Changes fields of `Path` between all pairs without a path of their own."""
        self._default_path = replace(self._default_path, **changes)

    def set_downlink(self, peer: PeerId, bandwidth_bytes_per_s: float) -> None:
        """What all others together can send to `peer`, in the order of their writes: the queue is
        where the delay begins."""
        self._downlinks[peer] = bandwidth_bytes_per_s

    def set_address(self, peer: PeerId, address: str) -> None:
        """The multiaddress that others see on streams of `peer`; without it they see none."""
        self._addresses[peer] = address

    def isolate(self, peer: PeerId) -> None:
        """A partition between `peer` and everybody else, until `rejoin`."""
        self._isolated.add(peer)

    def rejoin(self, peer: PeerId) -> None:
        """What was written meanwhile arrives now, in order."""
        self._isolated.discard(peer)
        for stream in list(self._streams):
            if peer in (stream.owner, stream.peer):
                stream.resume()

    def vanish(self, peer: PeerId) -> None:
        """As if the peer's process was killed; its streams end. Unknown peers are fine."""
        network = self._networks.get(peer)
        if network is not None:
            network.leave()

    def partition(self, a: PeerId, b: PeerId) -> None:
        """Silently: nothing arrives any more, in either direction, until `heal`."""
        self._held |= {(a, b), (b, a)}

    def stall(self, sender: PeerId, reader: PeerId) -> None:
        """`reader` no longer reads what `sender` writes, until `heal`."""
        self._held.add((sender, reader))

    def heal(self, a: PeerId, b: PeerId) -> None:
        """What was written meanwhile arrives now, in order."""
        self._held -= {(a, b), (b, a)}
        for stream in list(self._streams):
            if {stream.owner, stream.peer} == {a, b}:
                stream.resume()

    def reset(self, a: PeerId, b: PeerId) -> None:
        """Breaks all streams between the two; both learn it, and bytes on their way are lost."""
        for stream in list(self._streams):
            if (stream.owner, stream.peer) == (a, b):
                stream.break_both()

    def reset_all(self) -> int:
        """Breaks all streams; how many there were."""
        streams = list(self._streams)
        for stream in streams:
            stream.break_both()
        return len(streams) // 2

    def streams(self, a: PeerId, b: PeerId) -> int:
        """How many streams are open between the two."""
        return sum((stream.owner, stream.peer) == (a, b) for stream in self._streams)

    # ---- for the networks and streams

    def is_held(self, sender: PeerId, reader: PeerId) -> bool:
        isolated = not self._isolated.isdisjoint((sender, reader))
        return isolated or (sender, reader) in self._held

    def is_isolated(self, peer: PeerId) -> bool:
        return peer in self._isolated

    @property
    def default_path(self) -> Path:
        return self._default_path

    def listener(self, peer: PeerId) -> "MemoryNetwork | None":
        network = self._networks.get(peer)
        return network if network is not None and network.addresses else None

    def leave(self, network: "MemoryNetwork") -> None:
        if self._networks.get(network.peer_id) is network:
            del self._networks[network.peer_id]
            for stream in list(self._streams):
                if stream.owner == network.peer_id:
                    stream.close()

    def arrival_time(self, sender: PeerId, reader: PeerId, size: int) -> float:
        """When `size` bytes that are written now arrive."""
        path = self.path(sender, reader)
        now = asyncio.get_running_loop().time()
        begin = max(now, self._busy_until.get((sender, reader), 0.0))
        self._busy_until[sender, reader] = end = begin + size / path.bandwidth_bytes_per_s
        downlink = self._downlinks.get(reader)
        if downlink is not None:
            begin = max(begin, self._downlink_busy_until.get(reader, 0.0))
            self._downlink_busy_until[reader] = end = max(end, begin + size / downlink)
        if path.loss and self.random.random() < path.loss:
            end += path.stall_s
        if path.jitter_s:
            end += self.random.uniform(0.0, path.jitter_s)
        return end + path.delay_s

    def join(self, a: PeerId, b: PeerId) -> "tuple[MemoryStream, MemoryStream]":
        """The two ends of a new stream."""
        ends = MemoryStream(self, a, b), MemoryStream(self, b, a)
        ends[0].other, ends[1].other = ends[1], ends[0]
        self._streams |= set(ends)
        return ends

    def address_of(self, peer: PeerId) -> str:
        return self._addresses.get(peer, "")

    def forget(self, stream: "MemoryStream") -> None:
        self._streams.discard(stream)


class MemoryNetwork:
    """One peer's `Network`; made by `MemoryNetworkHub.network`."""

    def __init__(self, hub: MemoryNetworkHub, peer_id: PeerId, listens: bool) -> None:
        self.on_stream: Callable[[ByteStream], None] | None = None
        self._hub = hub
        self._peer_id = peer_id
        self._addresses = [f"{hub.address}/p2p/{peer_id}"] if listens else []
        self._closed = False

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> list[str]:
        return list(self._addresses)

    async def dial(self, peer: PeerId, timeout_s: float) -> ByteStream:
        """Takes one round trip. Raises UnreachablePeerError: at once if there is no such peer or
        it is a client, after `timeout_s` if the two stay partitioned."""
        if self._closed or self._hub.listener(peer) is None:
            raise UnreachablePeerError(f"{peer} is not in the network", peer=peer)
        delay_s = self._hub.path(self._peer_id, peer).delay_s
        left_s = timeout_s - 2 * delay_s
        while self._hub.is_held(self._peer_id, peer) or self._hub.is_held(peer, self._peer_id):
            await asyncio.sleep(min(RETRY_S, max(left_s, 0.0)))
            left_s -= RETRY_S
            if left_s < 0:
                break
        if left_s < 0:
            raise UnreachablePeerError(f"{peer} did not answer in {timeout_s:g} s", peer=peer)
        await asyncio.sleep(delay_s)
        listener = self._hub.listener(peer)
        if self._closed or listener is None or listener.on_stream is None:
            raise UnreachablePeerError(f"{peer} takes no streams", peer=peer)
        ours, theirs = self._hub.join(self._peer_id, peer)
        try:
            listener.on_stream(theirs)
            await asyncio.sleep(delay_s)
        except BaseException:
            ours.close()
            raise
        return ours

    @property
    def hub(self) -> MemoryNetworkHub:
        return self._hub

    @property
    def is_closed(self) -> bool:
        return self._closed

    def leave(self) -> None:
        self._closed = True
        self._hub.leave(self)

    async def close(self) -> None:
        self.leave()
