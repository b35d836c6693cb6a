"""What a link keeps of messages that wait or are not acknowledged, in bytes. Pure."""

from swarm.errors import LinkFullError
from swarm.scheduling.classes import ServiceClass
from swarm.wire.fair_budget import FairBudget

MESSAGE_OVERHEAD_BYTES = 1024
"""What a message takes besides its bytes while it is kept, about."""
SESSION_SHARE = 4
"""One session may hold the fourth part of what a link may hold."""


class Outstanding:
    """`total` stays below `max_bytes`; what one session has of it below a part of that, so that no
    session fills the link for the others; and what all links hold within their `budget`."""

    def __init__(self, max_bytes: int, budget: FairBudget) -> None:
        self.max_bytes = max_bytes
        self.total = 0
        self._budget = budget
        self._of_session: dict[bytes, int] = {}
        """Of each session that has some."""

    def check(self, size: int, service_class: ServiceClass, session: bytes) -> None:
        """Raises LinkFullError if a message of so many bytes is too much."""
        kept = size + MESSAGE_OVERHEAD_BYTES
        if self.total + kept > self.max_bytes:
            raise LinkFullError(
                f"{self.total} bytes already wait or are not acknowledged, and "
                f"{self.max_bytes} may be: the peer reads too slowly; send less, or later"
            )
        # One message may always be under way, however long it is; and what ends the session.
        held = self._of_session.get(session, 0) if session else 0
        if (
            held
            and service_class != ServiceClass.CONTROL
            and held + kept > self.max_bytes // SESSION_SHARE
        ):
            raise LinkFullError(
                f"{held} bytes of this session already wait or are not acknowledged, and "
                f"{self.max_bytes // SESSION_SHARE} of one session may be: the peer reads too "
                "slowly; send less, or later"
            )
        if service_class != ServiceClass.CONTROL and not self._budget.has_room(self.total, kept):
            raise LinkFullError(
                f"{self.total} bytes already wait or are not acknowledged here, and "
                f"{self._budget.used} on all links, of {self._budget.max_bytes} bytes of memory "
                "for them: the peers read too slowly; send less, or later"
            )

    def add(self, size: int, session: bytes) -> None:
        """A message of so many bytes is kept."""
        kept = size + MESSAGE_OVERHEAD_BYTES
        self._budget.change(self.total, kept)
        self.total += kept
        if session:
            self._of_session[session] = self._of_session.get(session, 0) + kept

    def remove(self, size: int, session: bytes) -> None:
        """It need not be kept any more."""
        kept = size + MESSAGE_OVERHEAD_BYTES
        self._budget.change(self.total, -kept)
        self.total -= kept
        if session:
            left = self._of_session[session] - kept
            if left:
                self._of_session[session] = left
            else:
                del self._of_session[session]

    def clear(self) -> None:
        """Nothing is kept any more."""
        self._budget.change(self.total, -self.total)
        self.total = 0
        self._of_session.clear()
