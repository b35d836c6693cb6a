"""What a server tells its operator while it lives: one event for each change of state."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("swarm.server")


@dataclass(frozen=True)
class ServerEvent:
    """One line for people (`text`) and the same for programs (`event` with `fields`)."""

    event: str
    """`notice`, `listening`, `loading`, `online`, `stats`, `moving`, `draining`, `stopped` or
    `error`."""
    text: str
    fields: dict[str, Any] = field(default_factory=dict)


EventSink = Callable[[ServerEvent], None]


def unfailing(sink: EventSink) -> EventSink:
    """The same, with its errors in the log: a server that cannot tell something goes on, and one
    that stops closes everything all the same."""

    def tell(event: ServerEvent) -> None:
        try:
            sink(event)
        except Exception:
            logger.exception("the event %r was not told", event.event)

    return tell


def log_event(event: ServerEvent) -> None:
    """The sink of a server that is embedded in another program."""
    logger.info("%s", event.text)
