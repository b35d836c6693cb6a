"""How far peers are from each other: measured pairs, coordinates, or a whole matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from swarm.errors import UsageError
from swarm.routing.coordinates import Coordinate
from swarm.spans import PeerId

DEFAULT_RTT_S = 0.15
"""Of a server that was never measured (as in Petals)."""

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.intp]


class Links(Protocol):
    """A network with its peers numbered in the order of a snapshot; all answers are arrays."""

    def from_peer_s(self, peer: PeerId) -> Floats:
        """`[peers]`: one-way delays from `peer` (which need not be numbered) to each."""
        ...

    def between_s(self, senders: Indices, receivers: Indices) -> Floats:
        """`[senders, receivers]`: one-way delays, the caller's to change; of a peer to itself it
        may be anything."""
        ...

    @property
    def seconds_per_byte(self) -> Floats:
        """`[peers]`: of each peer's access to the network; zero where it is not known."""
        ...


class Network(Protocol):
    """What is known of the ways between peers."""

    def one_way_s(self, sender: PeerId, receiver: PeerId) -> float:
        """Seconds from one peer to another."""
        ...

    def seconds_per_byte(self, peer: PeerId) -> float:
        """Of the peer's access; a way between two takes the slower one's."""
        ...

    def links(self, peers: Sequence[PeerId]) -> Links:
        """The same for many peers at once."""
        ...


class MatrixNetwork:
    """Every pair is known: a planner's inventory, or the truth of a simulation."""

    def __init__(
        self,
        peers: Sequence[PeerId],
        one_way_s: Floats,
        bytes_per_s: Mapping[PeerId, float] | None = None,
    ) -> None:
        """`one_way_s`: `[peers, peers]` seconds. Raises UsageError for an impossible matrix."""
        matrix = np.asarray(one_way_s, dtype=np.float64)
        if matrix.shape != (len(peers), len(peers)):
            raise UsageError(f"delays of shape {matrix.shape} for {len(peers)} peers")
        if len(set(peers)) != len(peers):
            raise UsageError("a peer is named twice; every peer has one name")
        if not np.isfinite(matrix).all() or (matrix < 0).any():
            raise UsageError("a delay is negative or not finite; delays are seconds")
        self.peers = tuple(peers)
        self.matrix_s = matrix.copy()
        np.fill_diagonal(self.matrix_s, 0.0)
        self._index = {peer: index for index, peer in enumerate(peers)}
        self._bytes_per_s = dict(bytes_per_s or {})

    def one_way_s(self, sender: PeerId, receiver: PeerId) -> float:
        return float(self.matrix_s[self._at(sender), self._at(receiver)])

    def seconds_per_byte(self, peer: PeerId) -> float:
        rate = self._bytes_per_s.get(peer, 0.0)
        return 1.0 / rate if rate > 0 else 0.0

    def links(self, peers: Sequence[PeerId]) -> "_MatrixLinks":
        chosen = np.array([self._at(peer) for peer in peers], dtype=np.intp)
        return _MatrixLinks(self, chosen, np.array([self.seconds_per_byte(peer) for peer in peers]))

    def _at(self, peer: PeerId) -> int:
        found = self._index.get(peer)
        if found is None:
            raise UsageError(f"no delays are known for {peer}; give them to the inventory")
        return found

    def row_s(self, peer: PeerId, columns: Indices) -> Floats:
        row: Floats = self.matrix_s[self._at(peer), columns]
        return row


@dataclass(frozen=True)
class _MatrixLinks:
    network: MatrixNetwork
    chosen: Indices
    seconds_per_byte: Floats

    def from_peer_s(self, peer: PeerId) -> Floats:
        return self.network.row_s(peer, self.chosen)

    def between_s(self, senders: Indices, receivers: Indices) -> Floats:
        found: Floats = self.network.matrix_s[
            self.chosen[senders][:, None], self.chosen[receivers][None, :]
        ]
        return found


class KnownNetwork:
    """What one peer knows: what it measured, what others announce, coordinates; else a guess.

    A delay is, in this order: half a round trip that was measured between the two (by either, the
    larger one if both tell); by both coordinates; the larger of both delays to the peer that knows
    (less than their difference it cannot be).
    """

    def __init__(
        self,
        me: PeerId,
        rtt_s: Mapping[PeerId, float],
        *,
        next_hops_s: Mapping[tuple[PeerId, PeerId], float] | None = None,
        coordinates: Mapping[PeerId, Coordinate] | None = None,
        bytes_per_s: Mapping[PeerId, float] | None = None,
        default_rtt_s: float = DEFAULT_RTT_S,
    ) -> None:
        """`rtt_s`: our own measurements; `next_hops_s`: round trips that servers measured to
        others; `bytes_per_s`: of the access of each peer."""
        self.me = me
        self._rtt_s = rtt_s
        self._pairs_s: dict[tuple[PeerId, PeerId], float] = {}
        for pair, rtt in (next_hops_s or {}).items():
            key = _pair(*pair)
            # Who says that it is nearer than the other one measured wins nothing by it.
            self._pairs_s[key] = max(self._pairs_s.get(key, 0.0), rtt / 2)
        self._coordinates = coordinates or {}
        self._bytes_per_s = bytes_per_s or {}
        self._default_s = default_rtt_s / 2

    def one_way_s(self, sender: PeerId, receiver: PeerId) -> float:
        if sender == receiver:
            return 0.0
        if self.me in (sender, receiver):
            return self.delay_to_s(receiver if sender == self.me else sender)
        measured = self._pairs_s.get(_pair(sender, receiver))
        if measured is not None:
            return measured
        here, there = self._coordinates.get(sender), self._coordinates.get(receiver)
        if here is not None and there is not None:
            return here.rtt_s(there) / 2
        return max(self.delay_to_s(sender), self.delay_to_s(receiver))

    def delay_to_s(self, peer: PeerId) -> float:
        """From the peer that knows."""
        if peer == self.me:
            return 0.0
        measured = self._rtt_s.get(peer)
        if measured is not None:
            return measured / 2
        announced = self._pairs_s.get(_pair(self.me, peer))
        if announced is not None:
            return announced
        here, there = self._coordinates.get(self.me), self._coordinates.get(peer)
        if here is not None and there is not None:
            return here.rtt_s(there) / 2
        return self._default_s

    def seconds_per_byte(self, peer: PeerId) -> float:
        rate = self._bytes_per_s.get(peer, 0.0)
        return 1.0 / rate if rate > 0 else 0.0

    def links(self, peers: Sequence[PeerId]) -> "_KnownLinks":
        index = {peer: number for number, peer in enumerate(peers)}
        pairs: dict[int, list[tuple[int, float]]] = {}
        for (one, other), delay_s in self._pairs_s.items():
            i, j = index.get(one), index.get(other)
            if i is not None and j is not None:
                pairs.setdefault(i, []).append((j, delay_s))
                pairs.setdefault(j, []).append((i, delay_s))
        known = [self._coordinates.get(peer) for peer in peers]
        dimensions = next((len(one.position_s) for one in known if one is not None), 0)
        position = np.full((len(known), dimensions), np.nan)
        height = np.full(len(known), np.nan)
        for number, place in enumerate(known):
            if place is not None and len(place.position_s) == dimensions:
                position[number] = place.position_s
                height[number] = place.height_s
        squares = (position * position).sum(axis=1, keepdims=True)
        ones = np.ones_like(squares)
        measured = {
            number: (
                np.array([other for other, _ in found], dtype=np.intp),
                np.array([delay for _, delay in found]),
            )
            for number, found in pairs.items()
        }
        return _KnownLinks(
            network=self,
            peers=tuple(peers),
            delay_s=np.array([self.delay_to_s(peer) for peer in peers]),
            height_s=height,
            sender_side=np.hstack([position, squares, ones]),
            receiver_side=np.hstack([-2 * position, ones, squares]),
            all_known=bool(dimensions) and not bool(np.isnan(height).any()),
            measured=measured,
            seconds_per_byte=np.array([self.seconds_per_byte(peer) for peer in peers]),
        )


@dataclass(frozen=True)
class _KnownLinks:
    network: KnownNetwork
    peers: tuple[PeerId, ...]
    delay_s: Floats
    height_s: Floats
    sender_side: Floats
    """`[n, dimensions + 2]`: `x, |x|^2, 1`; its product with the other is the squared distance."""
    receiver_side: Floats
    """`-2 x, 1, |x|^2`."""
    all_known: bool
    """Whether every peer has a coordinate."""
    measured: dict[int, tuple[Indices, Floats]]
    seconds_per_byte: Floats

    def from_peer_s(self, peer: PeerId) -> Floats:
        if peer == self.network.me:
            return self.delay_s
        return np.array([self.network.one_way_s(peer, other) for other in self.peers])

    def between_s(self, senders: Indices, receivers: Indices) -> Floats:
        if self.all_known:
            guess = self._by_coordinates(senders, receivers)
        else:
            guess = np.maximum(self.delay_s[senders][:, None], self.delay_s[receivers][None, :])
            if self.sender_side.shape[1] > 2:
                placed = self._by_coordinates(senders, receivers)
                guess = np.where(np.isnan(placed), guess, placed)
        if self.measured:
            self._overwrite(guess, senders, receivers)
        return guess

    def _by_coordinates(self, senders: Indices, receivers: Indices) -> Floats:
        apart: Floats = self.sender_side[senders] @ self.receiver_side[receivers].T
        np.maximum(apart, 0.0, out=apart)
        np.sqrt(apart, out=apart)
        apart += self.height_s[senders][:, None]
        apart += self.height_s[receivers][None, :]
        apart *= 0.5
        return apart

    def _overwrite(self, guess: Floats, senders: Indices, receivers: Indices) -> None:
        """Put what was measured in the place of what was guessed."""
        column = np.full(len(self.peers), -1, dtype=np.intp)
        column[receivers] = np.arange(len(receivers))
        for row, sender in enumerate(senders.tolist()):
            found = self.measured.get(sender)
            if found is not None:
                at = column[found[0]]
                guess[row, at[at >= 0]] = found[1][at >= 0]


def _pair(one: PeerId, other: PeerId) -> tuple[PeerId, PeerId]:
    return (one, other) if one <= other else (other, one)
