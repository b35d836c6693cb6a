"""What links call when something has come, or nothing will come any more."""

from typing import Protocol

from swarm.sessions.messages import Message
from swarm.spans import PeerId


class LinkHandler(Protocol):
    """Whoever uses the links. Called in the event loop; must be quick."""

    def on_message(self, peer: PeerId, message: Message, payload: memoryview) -> bool | None:
        """Each message once, whole, and in order within a session; `payload` is the handler's.

        True: a step or an output that leads nowhere; who sends too many of them is slowed down."""

    def on_link_lost(self, peer: PeerId, reason: str) -> None:
        """What was sent and not answered may be lost, and the peer may have lost its sessions."""
