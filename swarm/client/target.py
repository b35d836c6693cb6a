"""The model that sessions run, as routes and grants need it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarm.routing.view import SwarmView
from swarm.wire.frames import PROTOCOL_VERSION

if TYPE_CHECKING:
    from swarm.dht.records import ServerRecord


@dataclass(frozen=True)
class Target:
    """The model whose blocks a session runs."""

    name: str
    checkpoint: str
    num_blocks: int
    hidden_size: int
    dtype: str
    """Of the activations on the wire."""

    @property
    def activation_bytes(self) -> int:
        """Of one token on the wire."""
        return self.hidden_size * (4 if self.dtype == "float32" else 2)

    def view(self, records: "Iterable[ServerRecord]") -> SwarmView:
        """The servers among them that speak our version of the protocol."""
        ours = tuple(record.view() for record in records if record.protocol == PROTOCOL_VERSION)
        return SwarmView(self.checkpoint, self.num_blocks, ours)
