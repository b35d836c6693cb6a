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


def log_event(event: ServerEvent) -> None:
    """The sink of a server that is embedded in another program."""
    logger.info("%s", event.text)
