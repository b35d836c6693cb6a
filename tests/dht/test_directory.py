"""The directory over real libp2p peers, with hostile members of the DHT among them."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hostile_members import hostile_member
from libp2p_peers import peers, run_in_peace
from server_records import CHECKPOINT, record

from swarm.dht.directory import Directory, ModelEntry
from swarm.dht.node import DhtNode
from swarm.dht.protocol_rules import few_enough
from swarm.dht.records import ServerRecord, model_key, server_key, shard_of
from swarm.dht.signing import MAX_VALUE_BYTES, seal
from swarm.dht.source_limits import SourceLimits
from swarm.errors import RecordError, UnreachablePeerError
from swarm.routing.view import ServerState
from swarm.spans import PeerId
from swarm.wire.hivemind_setup import load_hivemind
from swarm.wire.identity import Identity


@asynccontextmanager
async def directory(node: DhtNode) -> AsyncIterator[Directory]:
    directory = Directory(node)
    try:
        yield directory
    finally:
        await directory.close()


async def peers_in(directory: Directory) -> set[str]:
    return {one.peer for one in await directory.snapshot(CHECKPOINT)}


async def spread(hostile: Any, key: str, subkey: Any, value: Any, until: float) -> None:
    """Sends a record to all and keeps it, also when the others refuse it."""
    from hivemind.dht.routing import DHTID

    await hostile.store(key, value, until, subkey=subkey)
    if subkey is not None:
        packed = hostile.protocol.serializer.dumps(value)
        hostile.protocol.storage.store(DHTID.generate(key), packed, until, subkey=subkey)


def test_servers_find_each_other_and_clients_find_them() -> None:
    async def main() -> None:
        async with peers() as started:
            first = await started.start_node()
            second = await started.start_node(first)
            client = await started.start_node(second, client_only=True)
            async with directory(first) as a, directory(second) as b, directory(client) as c:
                assert await c.snapshot(CHECKPOINT) == []
                assert await c.models() == []
                ours = record(first.network.peer_id, 0, 10)
                theirs = record(second.network.peer_id, 10, 20)
                assert await a.announce(ours)
                assert await b.announce(lambda: theirs)
                for reader in (a, b, c):
                    found = {one.peer: one for one in await reader.snapshot(CHECKPOINT)}
                    assert set(found) == {ours.peer, theirs.peer}
                    for one in (ours, theirs):
                        sequence = found[one.peer].sequence
                        assert sequence > 0
                        assert found[one.peer] == one.model_copy(update={"sequence": sequence})
                    assert await reader.models() == [
                        ModelEntry(CHECKPOINT, ours.model, ours.num_blocks, 2)
                    ]

    run_in_peace(main())


def test_a_change_replaces_the_record_and_withdrawing_removes_it() -> None:
    async def main() -> None:
        async with peers() as started:
            first = await started.start_node()
            second = await started.start_node(first)
            async with directory(first) as a, directory(second) as b:
                joining = record(first.network.peer_id, state=ServerState.JOINING)
                await a.announce(joining)
                (before,) = await b.snapshot(CHECKPOINT)
                await a.announce(joining.model_copy(update={"state": ServerState.ONLINE}))
                (after,) = await b.snapshot(CHECKPOINT)
                assert (before.state, after.state) == (ServerState.JOINING, ServerState.ONLINE)
                assert after.sequence > before.sequence
                assert [entry.servers for entry in await b.models()] == [1]
                await a.withdraw()
                await a.withdraw()
                assert await b.snapshot(CHECKPOINT) == []
                assert await b.models() == []

    run_in_peace(main())


def test_records_are_refreshed_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.dht.directory.REFRESH_S", 0.01)

    async def main() -> None:
        async with peers() as started:
            node = await started.start_node()
            async with directory(node) as a:
                sessions = iter(range(1000))
                await a.announce(lambda: record(node.network.peer_id, sessions=next(sessions)))
                while (await a.snapshot(CHECKPOINT))[0].sessions < 3:
                    pass  # each look lets the refresher run

    run_in_peace(main())


def test_a_record_with_too_many_digests_is_announced_without_them() -> None:
    async def main() -> None:
        async with peers() as started:
            node = await started.start_node()
            async with directory(node) as a:
                long = record(
                    node.network.peer_id, 0, 300, num_blocks=300, block_digests=b"abcd" * 300
                )
                assert await a.announce(long)
                (found,) = await a.snapshot(CHECKPOINT)
                assert (found.span, found.block_digests) == (long.span, b"")
                with pytest.raises(RecordError, match="cannot sign"):
                    await a.announce(record(Identity.create().peer_id))

    run_in_peace(main())


def test_bad_records_are_skipped_and_hide_no_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with peers() as started:
            first = await started.start_node()
            second = await started.start_node(first)
            client = await started.start_node(first, client_only=True)
            hostile = await hostile_member(started, first)
            async with directory(first) as a, directory(second) as b, directory(client) as c:
                honest = {first.network.peer_id, second.network.peer_id}
                await a.announce(record(first.network.peer_id, 0, 10))
                await b.announce(record(second.network.peer_id, 10, 20))
                until = time.time() + 60
                for victim in (first.network.peer_id, Identity.create().peer_id):
                    await spread_bad_records(hostile, victim, until)
                implausible = await spread_implausible_record(hostile, until)
                for reader in (a, b, c):
                    assert await peers_in(reader) == honest
                    (entry,) = await reader.models()
                    assert entry.servers == 2
                assert f"{implausible} is malformed: decode_ms_per_block" in caplog.text
            await hostile.shutdown()

    run_in_peace(main())


async def spread_bad_records(hostile: Any, victim: PeerId, until: float) -> None:
    """Everything that is wrong without the victim's key, under the victim's own shard."""
    thief = Identity.create()
    shard = shard_of(victim)
    key = server_key(CHECKPOINT, shard)
    good = record(thief.peer_id).sealed(thief, key, until)
    lie = record(thief.peer_id, state=ServerState.ONLINE).pack()
    for where in (key, model_key(shard)):
        await spread(hostile, where, victim, good, until)  # another's record under its name
        await spread(hostile, where, thief.peer_id, good, until + 100)  # made to live longer
        await spread(hostile, where, f"no peer {thief.peer_id[:8]}", good, until)
        await spread(hostile, where, 7, b"a subkey that is no text", until + 7)
        await spread(hostile, where, Identity.create().peer_id, b"x" * 100_000, until)
        await spread(hostile, where, Identity.create().peer_id, {"no": "bytes"}, until)
        await spread(hostile, where, victim, b"\0" * 64 + b"\x01" + lie, until + 50)
    owner = Identity.create()
    oversized = record(owner.peer_id).pack() + b"x" * MAX_VALUE_BYTES
    await spread(hostile, key, owner.peer_id, owner.sign(oversized) + oversized, until)
    from hivemind.dht.routing import DHTID

    storage = hostile.protocol.storage
    with storage.freeze():  # a value that has expired, which a fair node would not keep
        past = time.time() - 5
        value = hostile.protocol.serializer.dumps(record(owner.peer_id).sealed(owner, key, past))
        dictionary = storage.get(DHTID.generate(key)).value
        with dictionary.freeze():
            dictionary.store(owner.peer_id, value, past)


async def spread_implausible_record(hostile: Any, until: float) -> PeerId:
    """A record that is signed as it should be, and lies. Every holder takes it."""
    liar = Identity.create()
    key = server_key(CHECKPOINT, shard_of(liar.peer_id))
    body = msgspec.msgpack.decode(record(liar.peer_id).pack())
    value = seal(liar, key, msgspec.msgpack.encode({**body, "d": float("nan")}), until)
    await spread(hostile, key, liar.peer_id, value, until)
    return liar.peer_id


def test_a_value_without_owner_cannot_take_a_whole_shard() -> None:
    async def main() -> None:
        async with peers() as started:
            first = await started.start_node()
            second = await started.start_node(first)
            hostile = await hostile_member(started, first)
            async with directory(first) as a, directory(second) as b:
                key = server_key(CHECKPOINT, shard_of(first.network.peer_id))
                await spread(hostile, key, None, b"all of it is mine", time.time() + 500)
                assert await a.announce(record(first.network.peer_id))
                assert await peers_in(b) == {first.network.peer_id}
            await hostile.shutdown()

    run_in_peace(main())


def test_a_record_in_the_wrong_shard_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with peers() as started:
            node = await started.start_node()
            identity = node.network.identity
            key = server_key(CHECKPOINT, (shard_of(identity.peer_id) + 1) % 16)
            until = time.time() + 60
            value = record(identity.peer_id).sealed(identity, key, until)
            assert await node.store({key: value}, until)
            async with directory(node) as a:
                assert await a.snapshot(CHECKPOINT) == []
        assert "in the wrong shard" in caplog.text

    run_in_peace(main())


def test_a_killed_daemon_is_rebuilt_and_its_records_are_readable_again() -> None:
    async def main() -> None:
        async with peers() as started:
            first = await started.start_node()
            second = await started.start_node(first)
            late = await started.start_node(second)
            async with directory(first) as a, directory(second) as b, directory(late) as c:
                await a.announce(record(first.network.peer_id, 0, 10))
                await b.announce(record(second.network.peer_id, 10, 20))
                both = {first.network.peer_id, second.network.peer_id}
                for broken, own in ((first, a), (second, b)):
                    published = asyncio.Event()

                    async def note(event: asyncio.Event = published) -> None:
                        event.set()

                    broken.on_rebuilt.append(note)  # after the directory's own
                    (before,) = [
                        one
                        for one in await c.snapshot(CHECKPOINT)
                        if one.peer == broken.network.peer_id
                    ]
                    addresses = broken.network.addresses
                    assert broken.network.daemon_pid is not None
                    os.kill(broken.network.daemon_pid, signal.SIGKILL)
                    await published.wait()
                    assert broken.network.addresses == addresses
                    for reader in (a, b, c):
                        found = {one.peer: one for one in await reader.snapshot(CHECKPOINT)}
                        assert set(found) == both
                        assert found[before.peer].sequence > before.sequence
                    assert await peers_in(own) == both

    run_in_peace(main())


def test_a_rebuild_that_fails_is_tried_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with peers() as started:
            other = await started.start_node()
            broken = await started.start_node(other)
            rebuilt = asyncio.Event()

            async def note() -> None:
                rebuilt.set()

            broken.on_rebuilt.append(note)
            make, failures = broken._make, [TimeoutError(), TimeoutError()]

            async def make_late(before: Any) -> Any:
                node = await make(before)  # so its handlers are known to the daemon
                if failures:
                    node.is_alive = False
                    raise failures.pop()
                return node

            monkeypatch.setattr(broken, "_make", make_late)
            assert broken.network.daemon_pid is not None
            os.kill(broken.network.daemon_pid, signal.SIGKILL)
            await rebuilt.wait()
            assert not failures
            async with directory(broken) as a, directory(other) as b:
                assert await a.announce(record(broken.network.peer_id))
                assert await peers_in(b) == {broken.network.peer_id}

    run_in_peace(main())


def test_addresses_in_records_are_used_for_dialling() -> None:
    async def main() -> None:
        async with peers() as started:
            first = await started.start_node()
            second = await started.start_node(first)
            async with directory(first) as a, directory(second) as b:
                where = tuple(
                    address.removesuffix(f"/p2p/{first.network.peer_id}")
                    for address in first.network.addresses
                )
                await a.announce(record(first.network.peer_id, addresses=where))
                (found,) = await b.snapshot(CHECKPOINT)
                assert found.addresses == where
                assert await second.network.connect(f"{where[0]}/p2p/{found.peer}", 10)

    run_in_peace(main())


def test_a_peer_that_is_no_member_of_a_directory_is_one_clear_error() -> None:
    async def main() -> None:
        async with peers() as started:
            bare = await started.start()
            network = await started.start(initial_peers=bare.addresses)
            with pytest.raises(UnreachablePeerError, match="does not answer as a member"):
                await DhtNode.create(network)

    run_in_peace(main())


def test_a_flood_of_small_records_is_refused_before_it_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        from hivemind.dht.routing import DHTID
        from hivemind.dht.storage import DictionaryDHTValue

        async with peers() as started:
            node = await started.start_node()
            flooder = await hostile_member(started, node)
            assert node._node is not None
            protocol = node._node.protocol
            checked: list[object] = []
            monkeypatch.setattr(protocol, "_validate_dictionary", lambda *_: checked.append(_))
            flood = DictionaryDHTValue()
            for number in range(1000):
                flood.store(f"peer {number}", b"x" * 70, time.time() + 60)
            answer = await flooder.protocol.call_store(
                node.network.p2p.peer_id, [DHTID.generate("key")], [flood], time.time() + 60
            )
            assert answer == [False]
            for number in range(1000, 100_000):
                flood.store(f"peer {number}", b"x" * 70, time.time() + 60)
            answer = await flooder.protocol.call_store(
                node.network.p2p.peer_id, [DHTID.generate("key")], [flood], time.time() + 60
            )
            assert answer is None
            assert not checked
            assert protocol.storage.num_records() == 0
            await flooder.shutdown()

    run_in_peace(main())


def test_a_peer_is_handed_no_more_than_it_takes() -> None:
    load_hivemind()
    from hivemind.dht.storage import DictionaryDHTValue

    full = DictionaryDHTValue()
    for number in range(300):
        full.store(str(number), b"x" * 400, time.time() + 60)
    first, second, alone = few_enough([full, full, b"no dictionary"])
    assert (len(first), len(second), alone) == (200, 0, b"no dictionary")


def test_nobody_may_store_without_limit() -> None:
    async def main() -> None:
        async with peers() as started:
            node = await started.start_node()
            node._limits = SourceLimits(bytes_per_s=0, burst_bytes=5000)
            flooder = await hostile_member(started, node)
            until = time.time() + 60
            for _ in range(20):
                owner = Identity.create()
                key = server_key(CHECKPOINT, shard_of(owner.peer_id))
                value = record(owner.peer_id).sealed(owner, key, until)
                await flooder.store(key, value, until, subkey=owner.peer_id)
            async with directory(node) as a:
                assert node._node is not None
                stored = node._node.protocol.storage.num_records()
                assert 0 < stored < 20
                assert isinstance((await a.snapshot(CHECKPOINT))[0], ServerRecord)
            await flooder.shutdown()

    run_in_peace(main())
