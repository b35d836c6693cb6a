"""A message on its way over a link: what of it has been written, and where it waits."""

from collections.abc import Sequence
from typing import TypeAlias

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.fair_queue import Entry

Buffer: TypeAlias = bytes | bytearray | memoryview


class OutgoingMessage:
    """A message on its way. `parts` are its bytes, prelude first; `sent` of `size` are written.

    `was_whole`: all of it was written once, on this stream or an earlier one. `end`: where it ended
    on this stream. `delivered`: the peer says so; known while the message is being sent again if
    its first copy came after all.
    """

    __slots__ = (
        "client",
        "delivered",
        "end",
        "number",
        "part",
        "part_sent",
        "parts",
        "sent",
        "service_class",
        "session",
        "size",
        "was_whole",
    )

    def __init__(
        self,
        parts: Sequence[Buffer],
        size: int,
        service_class: ServiceClass,
        session: bytes,
        client: str,
    ) -> None:
        self.parts = parts
        self.size = size
        self.service_class = service_class
        self.session = session
        self.client = client
        self.number: int | None = None
        self.was_whole = False
        self.delivered = False
        self.rewind()

    def rewind(self) -> None:
        self.sent = self.part = self.part_sent = self.end = 0

    def take(self, length: int) -> list[Buffer]:
        """The next `length` bytes, which there are."""
        taken: list[Buffer] = []
        self.sent += length
        while length:
            part = self.parts[self.part]
            piece = memoryview(part)[self.part_sent : self.part_sent + length]
            taken.append(piece)
            length -= len(piece)
            self.part_sent += len(piece)
            if self.part_sent == len(part):
                self.part, self.part_sent = self.part + 1, 0
        return taken

    def entry(self) -> Entry["OutgoingMessage"]:
        """Made anew for each wait: it must not keep the message alive beyond that."""
        return Entry(self, self.service_class, self.client, self.session, self.size)
