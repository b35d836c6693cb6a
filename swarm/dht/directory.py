"""Who serves what: announcing ourselves, and reading what others announce."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from swarm.dht.node import Found
from swarm.dht.records import (
    RECORD_LIFETIME_S,
    SHARDS,
    ModelRecord,
    ServerRecord,
    may_live,
    model_key,
    server_key,
    shard_of,
)
from swarm.errors import PeerError, RecordError
from swarm.routing.view import ServerState
from swarm.spans import PeerId
from swarm.wire.identity import Identity
from swarm.wire.network import SwarmNetwork

logger = logging.getLogger(__name__)

REFRESH_S = 20.0
RETRY_S = 5.0
RECORDS_PER_TURN = 50
"""Records that are checked (0.2 ms each) before other tasks of the loop have their turn."""
_LOGGED_PEERS = 1024
_MAX_TOLD = 8
"""Records that are skipped, of one reading, that the log names: anybody may store bad ones."""

_Kind = TypeVar("_Kind", ServerRecord, ModelRecord)


@dataclass(frozen=True)
class ModelEntry:
    """A model that the swarm serves."""

    checkpoint: str
    model: str
    """Its short name, as most of its servers give it."""
    num_blocks: int
    servers: int


class DirectoryNode(Protocol):
    """A member of what keeps the records: `swarm.dht.node.DhtNode`, or one in memory."""

    @property
    def network(self) -> SwarmNetwork: ...

    @property
    def on_rebuilt(self) -> list[Callable[[], Awaitable[None]]]:
        """Awaited when what we had stored may be gone."""

    async def store(self, values: dict[str, bytes], expiration: float) -> bool: ...
    async def get_many(self, keys: Collection[str]) -> dict[str, Found]: ...
    async def ping(self, peer: PeerId, timeout_s: float) -> float: ...
    async def close(self) -> None: ...


class Directory:
    """The swarm's directory as one peer sees it.

    A record that is announced is refreshed about every `REFRESH_S` until `withdraw` or `close`,
    and again at once after our libp2p daemon was rebuilt.
    """

    def __init__(self, node: DirectoryNode, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix time in seconds."""
        self._node = node
        self._clock = clock
        self._current: Callable[[], ServerRecord] | None = None
        self._last_expiration = 0.0
        self._last_sequence = 0
        self._storing = asyncio.Lock()
        self._refresher: asyncio.Task[None] | None = None
        self._has_twin = False
        self._logged: dict[str, str] = {}

    async def announce(self, record: ServerRecord | Callable[[], ServerRecord]) -> bool:
        """Announces a record now, and goes on doing so; a later call replaces it.

        With a function each refresh asks it for the present record. `sequence` is filled in here.
        False: no other peer took the record; it is tried again soon.

        Raises RecordError when the record is too large or is not our own.
        """
        if isinstance(record, ServerRecord):
            self._current = lambda: record
        else:
            self._current = record
        if self._refresher is None:
            self._refresher = asyncio.create_task(self._refresh(), name="directory refresher")
            self._node.on_rebuilt.append(self._announce_again)
        return await self._store_current()

    async def withdraw(self) -> None:
        """Says that we are offline, and announces nothing more. Never fails for want of peers."""
        current, self._current = self._current, None
        await self._stop_refreshing()
        if current is not None:
            record = current().model_copy(
                update={"state": ServerState.OFFLINE, "block_digests": b""}
            )
            async with self._storing:
                await self._store(record)

    async def snapshot(self, checkpoint: str) -> list[ServerRecord]:
        """The servers of a checkpoint that are not offline, by peer id.

        Records that are forged, stale, misplaced or not plausible are skipped, with a log line.
        The addresses in the records are handed to the network for later dials.

        Raises PeerTimeoutError when the directory does not answer.
        """
        keys = {server_key(checkpoint, shard): shard for shard in range(SHARDS)}
        records = [
            record
            for record in await self._read(ServerRecord, keys)
            if record.checkpoint == checkpoint and record.state is not ServerState.OFFLINE
        ]
        for record in records:
            if record.peer == self._node.network.peer_id:
                self._look_for_twin(record)
            elif record.addresses:
                self._node.network.add_addresses(record.peer, record.addresses)
        return sorted(records, key=lambda record: record.peer)

    async def models(self) -> list[ModelEntry]:
        """The models that the swarm serves, those with most servers first.

        Raises PeerTimeoutError when the directory does not answer.
        """
        keys = {model_key(shard): shard for shard in range(SHARDS)}
        by_checkpoint: dict[str, list[ModelRecord]] = {}
        for record in await self._read(ModelRecord, keys):
            if not record.withdrawn:
                by_checkpoint.setdefault(record.checkpoint, []).append(record)
        entries = []
        for checkpoint, records in by_checkpoint.items():
            claims = Counter((record.model, record.num_blocks) for record in records)
            (model, num_blocks), _ = min(claims.items(), key=lambda item: (-item[1], item[0]))
            entries.append(ModelEntry(checkpoint, model, num_blocks, len(records)))
        return sorted(entries, key=lambda entry: (-entry.servers, entry.model, entry.checkpoint))

    async def round_trip_s(self, peer: PeerId, timeout_s: float) -> float:
        """Asks a server, and says how long that took. Raises PeerError when it does not answer."""
        return await self._node.ping(peer, timeout_s)

    async def close(self) -> None:
        """Stops announcing; our records fade within `RECORD_LIFETIME_S`."""
        self._current = None
        await self._stop_refreshing()

    # ---- announcing

    async def _refresh(self) -> None:
        stored = True
        while True:
            await asyncio.sleep((REFRESH_S if stored else RETRY_S) * random.uniform(0.75, 1.25))
            try:
                stored = await self._store_current()
            except Exception:
                logger.exception("refreshing our record in the directory failed")
                stored = False

    async def _announce_again(self) -> None:
        await self._store_current()

    async def _store_current(self) -> bool:
        async with self._storing:
            return True if self._current is None else await self._store(self._current())

    async def _store(self, record: ServerRecord) -> bool:
        now = self._clock()
        # Of two values under one key the DHT keeps the one that expires later. What was signed for
        # longer than any value may live was signed before our clock was set back.
        expiration, later = now + RECORD_LIFETIME_S, self._last_expiration + 0.001
        if later > expiration and may_live(later, now):
            expiration = later
        sequence = max(int(now * 1000), self._last_sequence + 1)
        record = record.model_copy(update={"sequence": sequence})
        values = self._sealed(record, expiration)
        self._last_expiration, self._last_sequence = expiration, sequence
        try:
            stored = await self._node.store(values, expiration)
        except (PeerError, OSError) as error:
            logger.warning("our record is not in the directory: %s", error)
            return False
        if not stored:
            logger.info("not every key of our record was taken by the directory")
        return stored

    def _sealed(self, record: ServerRecord, expiration: float) -> dict[str, bytes]:
        identity = self._node.network.identity
        shard = shard_of(record.peer)
        server = server_key(record.checkpoint, shard)
        value = _fitting(record, identity, server, expiration)
        index = ModelRecord(
            peer=record.peer,
            checkpoint=record.checkpoint,
            model=record.model,
            num_blocks=record.num_blocks,
            withdrawn=record.state is ServerState.OFFLINE,
        )
        key = model_key(shard)
        return {server: value, key: index.sealed(identity, key, expiration)}

    async def _stop_refreshing(self) -> None:
        if self._refresher is not None:
            self._node.on_rebuilt.remove(self._announce_again)
            self._refresher.cancel()
            await asyncio.gather(self._refresher, return_exceptions=True)
            self._refresher = None

    # ---- reading

    async def _read(self, kind: type[_Kind], keys: dict[str, int]) -> list[_Kind]:
        found = await self._node.get_many(keys)
        records: list[_Kind] = []
        skipped: dict[str, str] = {}
        for number, (key, peer, value, expiration) in enumerate(_entries(found)):
            if number % RECORDS_PER_TURN == RECORDS_PER_TURN - 1:
                await asyncio.sleep(0)
            try:
                if shard_of(peer) != keys[key]:
                    raise RecordError(f"a record of {peer} that is in the wrong shard")
                records.append(kind.opened(key, peer, value, expiration, now=self._clock()))
            except RecordError as error:
                skipped[peer] = str(error)
        self._log_skipped(skipped)
        return records

    def _look_for_twin(self, ours: ServerRecord) -> None:
        """Says once that somebody else announces under our name, as from a copy of this machine:
        what is sent to the one then comes to the other."""
        if 0 < self._last_sequence < ours.sequence and not self._has_twin:
            self._has_twin = True
            logger.error(
                "another server announces itself as %s, at %s: it has a copy of this one's "
                "identity file; give it one of its own (--identity), or sessions of both will fail",
                ours.peer,
                ", ".join(ours.addresses) or "an unknown address",
            )

    def _log_skipped(self, skipped: dict[str, str]) -> None:
        """`skipped`: why, by peer."""
        fresh = {
            peer: reason for peer, reason in skipped.items() if self._logged.get(peer) != reason
        }
        self._logged |= fresh
        while len(self._logged) > _LOGGED_PEERS:
            del self._logged[next(iter(self._logged))]
        for reason in islice(fresh.values(), _MAX_TOLD):
            logger.warning("skipped in the directory: %s", reason)
        if len(fresh) > _MAX_TOLD:
            logger.warning("skipped in the directory: %d more records", len(fresh) - _MAX_TOLD)


def _fitting(record: ServerRecord, identity: Identity, key: str, expiration: float) -> bytes:
    """Sealed; what others can do without is left out of a record that is too large."""
    for field in ("block_digests", "next_hops"):
        try:
            return record.sealed(identity, key, expiration)
        except RecordError:
            record = record.model_copy(update={field: b""})
    return record.sealed(identity, key, expiration)


def _entries(found: dict[str, Found]) -> Iterator[tuple[str, PeerId, bytes, float]]:
    for key, values in found.items():
        for peer, (value, expiration) in values.items():
            yield key, PeerId(peer), value, expiration
