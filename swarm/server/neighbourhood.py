"""What the directory says of the swarm around a server."""

import asyncio
import logging

from swarm.dht.directory import Directory
from swarm.errors import CheckpointError, SwarmError
from swarm.routing.view import SwarmView
from swarm.server.hosted import Plan
from swarm.server.lifecycle import EventSink, ServerEvent

logger = logging.getLogger("swarm.server")

LOOK_ROUND_S = 20.0
"""How often the directory is read."""


def short_name(name: str) -> str:
    """How a model is called in the directory."""
    return name.rstrip("/").rpartition("/")[2][:80] or "model"


class Neighbourhood:
    """Reads the directory now and then, so that the network knows the other servers' addresses,
    and tells when the model becomes whole or blocks of it are missing."""

    def __init__(self, directory: Directory, plan: Plan, tell: EventSink) -> None:
        self._directory = directory
        self._plan = plan
        self._tell = tell
        self._missing: list[str] | None = None

    async def view(self) -> SwarmView:
        """The servers of our checkpoint now. Raises `PeerTimeoutError`."""
        records = await self._directory.snapshot(self._plan.identity)
        servers = tuple(record.view() for record in records)
        return SwarmView(self._plan.identity, self._plan.checkpoint.num_blocks, servers)

    async def check_model(self) -> None:
        """Raises `CheckpointError` if the swarm serves other weights under our model's name.

        One name with two contents is a mistake; two models in one swarm are none.
        """
        checkpoint = self._plan.checkpoint
        models = await self._directory.models()
        if any(entry.checkpoint == self._plan.identity for entry in models):
            return
        if any(entry.model == short_name(checkpoint.name) for entry in models):
            raise CheckpointError(
                f"the swarm serves another checkpoint as {short_name(checkpoint.name)}: its weights"
                " or its config differ from those that you gave; use the same files or --revision"
                " as the others, or begin a swarm of your own without --peers"
            )
        if models:
            names = sorted({entry.model for entry in models})
            text = f"{checkpoint.name} is new in this swarm, which serves {', '.join(names)}"
            self._tell(ServerEvent("notice", text, {"models": names}))

    async def look_round(self) -> None:
        """Reads the directory once. Raises `PeerTimeoutError`."""
        view = await self.view()
        missing = [str(span) for span in view.missing()]
        if missing == self._missing:
            return
        self._missing = missing
        name = self._plan.checkpoint.name
        text = f"all {view.num_blocks} blocks of {name} are online"
        if missing:
            text = f"blocks {', '.join(missing)} of {name} have no server yet"
        self._tell(ServerEvent("notice", text, {"missing": missing}))

    async def watch(self) -> None:
        """Looks round until it is cancelled."""
        while True:
            try:
                await self.look_round()
            except SwarmError as error:
                logger.info("the directory was not read: %s", error)
            except Exception:
                logger.exception("reading the directory failed")
            await asyncio.sleep(LOOK_ROUND_S)
