"""What the directory says of the swarm around a server."""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping

from swarm.dht.directory import Directory
from swarm.dht.records import DIGEST_BYTES, ServerRecord
from swarm.errors import CheckpointError, PeerError, SwarmError
from swarm.printable import printable
from swarm.routing.view import SwarmView
from swarm.server.distances import Distances
from swarm.server.events import EventSink, ServerEvent
from swarm.server.hosted import Plan
from swarm.server.promises import Promises
from swarm.server.telling import counted
from swarm.spans import PeerId, Span
from swarm.wire.versions import check_versions

logger = logging.getLogger("swarm.server")

MAX_MODEL_NAME_BYTES = 80
MAX_MODELS = 16
"""Of a swarm, that a server looks at before it joins with another one."""
LOOK_ROUND_S = 20.0
"""How often the directory is read."""
MAX_ASKED = 16
"""Of those that announce other contents of our blocks than we have."""
ANSWER_S = 3.0
"""How long they have to say that they are there."""
DOUBT_S = 1.0
"""How soon a server that did not answer is asked again."""


def short_name(name: str) -> str:
    """How a model is called in the directory: at most 80 bytes."""
    short = printable(name.rstrip("/").rpartition("/")[2])
    return short.encode()[:MAX_MODEL_NAME_BYTES].decode(errors="ignore") or "model"


class Neighbourhood:
    """Reads the directory now and then, so that the network knows the other servers' addresses,
    and tells when the model becomes whole or blocks of it are missing."""

    def __init__(
        self, directory: Directory, plan: Plan, tell: EventSink, distances: Distances
    ) -> None:
        self._directory = directory
        self._plan = plan
        self._tell = tell
        self._distances = distances
        self._promises = Promises()
        self._records: list[ServerRecord] = []
        self._missing: list[str] | None = None
        self.on_missing: Callable[[], None] = lambda: None
        """Called when blocks have no server any more, or not yet."""
        self.names: dict[PeerId, str] = {}
        """The servers of our checkpoint when they were last looked at, with their public names."""

    async def view(self) -> SwarmView:
        """The servers of our checkpoint now. Raises `PeerTimeoutError`."""
        self._records = records = await self._directory.snapshot(self._plan.identity)
        self._promises.read(records, asyncio.get_running_loop().time())
        self.names = {record.peer: record.public_name for record in records}
        return self._view_of(records)

    async def living(self) -> SwarmView:
        """As `view`, without servers that do not answer, whatever their records say, and without
        those that do not come where they said that they would be soon."""
        await self.view()
        return self._living()

    def following(self, span: Span) -> set[PeerId]:
        """The servers that may come after `span` in a chain."""
        return {record.peer for record in self._records if span.end in record.span}

    def _living(self) -> SwarmView:
        left_out = self._distances.silent() | self._promises.broken
        return self._view_of([one for one in self._records if one.peer not in left_out])

    def _view_of(self, records: list[ServerRecord]) -> SwarmView:
        servers = tuple(record.view() for record in records)
        return SwarmView(self._plan.identity, self._plan.checkpoint.num_blocks, servers)

    async def check_model(self) -> None:
        """Raises `CheckpointError` if the swarm serves other weights under our model's name, and
        `ProtocolVersionError` if none of its servers speaks our version of the protocol.

        One name with two contents is a mistake; two models in one swarm are none.
        """
        name = self._plan.checkpoint.name
        records = await self._directory.snapshot(self._plan.identity) or await self._served()
        # One of ours may have come between the two.
        ours = [record for record in records if record.checkpoint == self._plan.identity]
        check_versions(record.protocol for record in ours or records)
        if ours:
            return
        if any(record.model == short_name(name) for record in records):
            raise CheckpointError(
                f"the swarm serves another checkpoint as {short_name(name)}: its weights"
                " or its config differ from those that you gave; use the same files or --revision"
                " as the others, or begin a swarm of your own without --peers"
            )
        if records:
            names = sorted({record.model for record in records})
            text = f"{name} is new in this swarm, which serves {', '.join(names)}"
            self._tell(ServerEvent("notice", text, {"models": names}))

    async def check_digests(self, span: Span, digests: bytes) -> None:
        """Raises `CheckpointError` if our blocks are not those of the others who host them.

        `digests`: of the blocks of `span`, as in a record. A block is wrong if more of the servers
        that announce its digest contradict ours than confirm it: the checkpoint's identity is made
        of samples, and does not see every damaged byte. Who contradicts has to be there, for
        anybody may announce any number of servers.
        """
        records = await self._directory.snapshot(self._plan.identity)
        others: dict[int, list[PeerId]] = {}
        confirmed: dict[int, int] = {}
        for block in range(span.start, span.end):
            start = DIGEST_BYTES * (block - span.start)
            ours = digests[start : start + DIGEST_BYTES]
            said = {one.peer: found for one in records if (found := one.digest_of(block))}
            others[block] = [peer for peer, digest in said.items() if digest != ours]
            confirmed[block] = len(said) - len(others[block])
        contradicted = [block for block in others if len(others[block]) > confirmed[block]]
        there = await self._answering({peer for block in contradicted for peer in others[block]})
        for block in contradicted:
            if len(there.intersection(others[block])) > confirmed[block]:
                raise CheckpointError(
                    f"block {block} of {self._plan.checkpoint.name} is damaged here, or not what "
                    f"{counted(len(others[block]), 'server')} of this swarm serve as block {block};"
                    " fetch the model again"
                )

    async def _answering(self, peers: Collection[PeerId]) -> set[PeerId]:
        """Those of a few of them that answer when they are asked."""
        asked = random.sample(sorted(peers), min(MAX_ASKED, len(peers)))
        answers = await asyncio.gather(
            *(self._directory.round_trip_s(peer, ANSWER_S) for peer in asked),
            return_exceptions=True,
        )
        there: set[PeerId] = set()
        for peer, answer in zip(asked, answers, strict=True):
            if isinstance(answer, float):
                there.add(peer)
            elif isinstance(answer, PeerError):
                logger.warning("its record contradicts our blocks, and does not count: %s", answer)
            else:
                raise answer
        return there

    async def _served(self) -> list[ServerRecord]:
        """The servers of the other models, those of our name first and then those that have most
        servers; the index alone may still name some that have left, and anybody may write any
        number of names into it."""
        ours = short_name(self._plan.checkpoint.name)
        entries = sorted(await self._directory.models(), key=lambda entry: entry.model != ours)
        found = await asyncio.gather(
            *(self._servers_of(entry.checkpoint) for entry in entries[:MAX_MODELS])
        )
        return [record for records in found for record in records]

    async def _servers_of(self, checkpoint: str) -> list[ServerRecord]:
        try:
            return await self._directory.snapshot(checkpoint)
        except PeerError as error:
            logger.info("the servers of %s were not found out: %s", checkpoint, error)
            return []

    async def look_round(self) -> None:
        """Reads the directory once. Raises `PeerTimeoutError`."""
        self._notice(await self.living())

    def _notice(self, view: SwarmView) -> None:
        missing = [str(span) for span in view.missing()]
        if missing == self._missing:
            return
        self._missing = missing
        name = self._plan.checkpoint.name
        text = f"all {view.num_blocks} blocks of {name} are online"
        if missing:
            text = f"blocks {', '.join(missing)} of {name} have no server yet"
        self._tell(ServerEvent("notice", text, {"missing": missing}))
        if missing:
            self.on_missing()

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

    async def survey(
        self,
        span: Callable[[], Span],
        linked_s: Callable[[], Mapping[PeerId, float]],
        pace_s: float,
    ) -> None:
        """Asks a few servers every `pace_s` how far they are, until it is cancelled.

        `linked_s`: round trips of the links that are up.
        """
        while True:
            doubted = False
            try:
                doubted = await self._distances.survey(self._records, span(), linked_s())
                if self._records:
                    self._notice(self._living())
            except Exception:
                logger.exception("measuring distances failed")
            await asyncio.sleep(min(pace_s, DOUBT_S) if doubted else pace_s * _jitter())


def _jitter() -> float:
    return random.uniform(0.75, 1.25)
