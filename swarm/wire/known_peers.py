"""Where peers may be found: what others told us, and where we were connected to them. Pure."""

import logging
from collections.abc import Iterable, Iterator, Sequence

from swarm.errors import AddressError
from swarm.spans import PeerId
from swarm.wire.addresses import check_address, is_relayed

logger = logging.getLogger(__name__)

MAX_MET_PEERS = 64
MAX_TOLD_PEERS = 4096


class KnownPeers:
    """Addresses without a peer's id at the end; of too many peers those are forgotten that were
    told of or met longest ago."""

    def __init__(self, initial_peers: Sequence[str]) -> None:
        """`initial_peers`: full addresses of those whose network is joined."""
        self.initial_peers = list(initial_peers)
        self._told: dict[PeerId, tuple[str, ...]] = {}
        self._met: dict[PeerId, tuple[str, ...]] = {}

    def told(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Others say so, with or without its id at the end; replaces what they said before.
        Malformed addresses are left out."""
        _put_last(self._told, peer, tuple(_well_formed(peer, addresses)), MAX_TOLD_PEERS)

    def met(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """We are connected to it there. Left out are addresses over relays, and those that nobody
        could give us: libp2p knows more kinds, such as those of one network card."""
        direct = tuple(one for one in _well_formed(peer, addresses) if not is_relayed(one))
        _put_last(self._met, peer, direct, MAX_MET_PEERS)

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """What others said; empty: nothing."""
        return self._told.get(peer, ())

    def met_peers(self) -> list[tuple[PeerId, tuple[str, ...]]]:
        """Whom we were connected to, and where."""
        return list(self._met.items())

    def bootstrap_peers(self) -> list[str]:
        """Full addresses of the peers to join by: the initial ones and those met since."""
        met = [
            f"{address}/p2p/{peer}"
            for peer, addresses in self._met.items()
            for address in addresses[:1]
        ]
        return [*self.initial_peers, *(one for one in met if one not in self.initial_peers)]


def _well_formed(peer: PeerId, addresses: Iterable[str]) -> Iterator[str]:
    """Without the peer's id at the end."""
    for address in addresses:
        try:
            yield check_address(address).removesuffix(f"/p2p/{peer}")
        except AddressError as error:
            logger.info("an address of %s is left out: %s", peer, error)


def _put_last(
    table: dict[PeerId, tuple[str, ...]], peer: PeerId, addresses: tuple[str, ...], most: int
) -> None:
    table.pop(peer, None)
    table[peer] = addresses
    while len(table) > most:
        del table[next(iter(table))]
