"""`swarm.testing.LocalSwarm`: what its users may rely on."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM as PlainAutoModel

import swarm as package
from swarm import AutoModelForCausalLM, Server, ServerConfig
from swarm.client.runtime import runtime
from swarm.dht.joining import join_directory
from swarm.dht.memory import MemoryDirectoryNode
from swarm.dht.records import SHARDS, model_key, server_key, shard_of
from swarm.dht.signing import seal
from swarm.errors import (
    AddressError,
    MissingBlocksError,
    PeerError,
    PeerTimeoutError,
    SessionError,
    UnreachablePeerError,
    UsageError,
)
from swarm.testing import LocalSwarm
from swarm.wire.entrance import MemoryMember, enter
from swarm.wire.identity import Identity
from swarm.wire.memory import MemoryNetworkHub
from swarm.wire.memory import Path as NetworkPath

IDS = torch.arange(5, 13)[None]
TOKENS = 6
SOON = {"missing_timeout_s": 0.5, "link_grace_s": 0.5, "connect_timeout_s": 1.0}


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> torch.Tensor:
    return greedy(PlainAutoModel.from_pretrained(tiny_llama, dtype=torch.float32))


@pytest.fixture
def swarm(tiny_llama: Path) -> Iterator[LocalSwarm]:
    with LocalSwarm(tiny_llama, "0:2", "2:4") as swarm:
        yield swarm


def greedy(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    found: torch.Tensor = model.generate(
        ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
    )
    return found


def test_it_needs_no_process_and_no_socket(swarm: LocalSwarm, expected: torch.Tensor) -> None:
    process = psutil.Process()
    before = process.net_connections(), process.children(recursive=True)
    with swarm.client() as model:
        assert torch.equal(greedy(model), expected)
        assert [(hop.start, hop.end) for hop in model.route] == [(0, 2), (2, 4)]
        assert [status["blocks"] for status in swarm.statuses()] == ["0:2", "2:4"]
    swarm.wait_until_free()
    assert (process.net_connections(), process.children(recursive=True)) == before


def test_the_address_is_one_like_any_other(
    tiny_llama: Path, swarm: LocalSwarm, expected: torch.Tensor
) -> None:
    assert swarm.address.startswith("/memory/")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, initial_peers=[swarm.address])
    assert torch.equal(greedy(model), expected)
    model.close()


def test_delay_counts_once_a_hop(swarm: LocalSwarm) -> None:
    """A token goes to the first server, to the second, and back: three ways."""
    with swarm.client() as model, model.session(max_length=64):
        told = greedy(model)
        swarm.set_path(delay_s=0.05)
        began = time.monotonic()
        greedy(model, told)
        assert time.monotonic() - began > 2.9 * 0.05 * TOKENS


def test_bandwidth_between_two_servers(swarm: LocalSwarm) -> None:
    ids = torch.randint(3, 96, (1, 100))
    with swarm.client() as model, model.session(max_length=128):
        greedy(model)
        swarm.set_path(*swarm.servers, bandwidth_bytes_per_s=20_000)
        began = time.monotonic()
        greedy(model, ids)
        # Activations of 32 numbers in float32.
        assert time.monotonic() - began >= 100 * 32 * 4 / 20_000


def test_a_partition_ends_a_session_and_heals(swarm: LocalSwarm, expected: torch.Tensor) -> None:
    with swarm.client(**SOON, step_timeout_s=2.0, open_timeout_s=3.0) as model:
        assert torch.equal(greedy(model), expected)
        swarm.partition(swarm.servers[1])
        with pytest.raises((SessionError, PeerError, MissingBlocksError)):
            greedy(model)
        swarm.heal(swarm.servers[1])
        deadline = time.monotonic() + 60
        while True:
            try:
                assert torch.equal(greedy(model), expected)
                break
            except (SessionError, PeerError, MissingBlocksError):
                assert time.monotonic() < deadline


def test_a_killed_server_says_no_goodbye(swarm: LocalSwarm, expected: torch.Tensor) -> None:
    with swarm.client(**SOON) as model:
        assert torch.equal(greedy(model), expected)
        swarm.kill(swarm.servers[1])
        with pytest.raises(MissingBlocksError) as missing:
            greedy(model)
        assert missing.value.blocks == ("2:4",)
        # Its record is still there: who comes now tries it, and is told what is missing.
        assert len(_records(swarm)) == 2
        swarm.start("2:4")
        assert torch.equal(greedy(model), expected)


def _records(swarm: LocalSwarm) -> set[str]:
    """The peers in the directory's index of models."""

    async def read() -> set[str]:
        member = await enter(Identity.create(), initial_peers=[swarm.address], client_only=True)
        node = await join_directory(member)
        found = await node.get_many([model_key(shard) for shard in range(SHARDS)])
        await member.close()
        return {peer for values in found.values() for peer in values}

    return swarm.run(read())


def test_servers_of_your_own_in_your_own_loop(tiny_llama: Path, expected: torch.Tensor) -> None:
    """As in a test or a notebook, over the real network."""

    async def main() -> torch.Tensor:
        listen = ("/ip4/127.0.0.1/tcp/0",)
        config = ServerConfig(
            model=str(tiny_llama),
            blocks="0:4",
            listen=listen,
            identity=tiny_llama.with_name("identity"),
            cache_tokens=256,
            threads=1,
        )
        async with Server(config) as server:
            assert str(server.state) == "online"
            model = await asyncio.to_thread(
                AutoModelForCausalLM.from_pretrained, tiny_llama, initial_peers=[server.address]
            )
            try:
                return await asyncio.to_thread(greedy, model)
            finally:
                await asyncio.to_thread(model.close)

    assert torch.equal(asyncio.run(main()), expected)


def test_servers_of_a_hub_of_your_own(tiny_llama: Path, tmp_path: Path) -> None:
    async def main() -> list[str]:
        hub = MemoryNetworkHub(path=NetworkPath(delay_s=0.001))
        values = {"model": str(tiny_llama), "listen": (hub.address,), "cache_tokens": 64}
        first = ServerConfig(**values, blocks="0:2", identity=tmp_path / "1")
        async with Server(first) as one:
            second = ServerConfig(
                **values, blocks="2:4", identity=tmp_path / "2", peers=(one.address,)
            )
            async with Server(second) as two:
                return [one.address, two.address, hub.address]

    first, second, hub = asyncio.run(main())
    assert first != second and first.startswith(hub) and second.startswith(hub)


def test_one_network_has_one_loop(tiny_llama: Path, swarm: LocalSwarm, tmp_path: Path) -> None:
    config = ServerConfig(
        model=str(tiny_llama),
        blocks="0:2",
        listen=(swarm.address.partition("/p2p/")[0],),
        identity=tmp_path / "key",
    )
    with pytest.raises(UsageError, match="another event loop"):
        asyncio.run(Server(config).start())


@pytest.mark.parametrize(
    ("addresses", "error", "words"),
    [
        (["/memory/999999/p2p/{peer}"], UnreachablePeerError, "not a network in the memory"),
        (["{swarm}", "/ip4/127.0.0.1/tcp/1/p2p/{peer}"], AddressError, "several networks"),
        (["{hub}/p2p/{peer}"], UnreachablePeerError, "is that server running"),
        (["{hub}"], AddressError, "does not name its peer"),
    ],
)
def test_addresses_that_lead_nowhere(
    tiny_llama: Path,
    swarm: LocalSwarm,
    addresses: list[str],
    error: type[Exception],
    words: str,
) -> None:
    names = {
        "peer": Identity.create().peer_id,
        "swarm": swarm.address,
        "hub": swarm.address.partition("/p2p/")[0],
    }
    with pytest.raises(error, match=words):
        AutoModelForCausalLM.from_pretrained(
            tiny_llama, initial_peers=[one.format(**names) for one in addresses]
        )


def test_only_sound_records_are_taken() -> None:
    """By the rules of the DHT: signature, owner, key and lifetime."""
    now = 1000.0

    async def main() -> None:
        hub = MemoryNetworkHub()
        ours = await _member(hub)
        theirs = await _member(hub)
        node = MemoryDirectoryNode(ours, clock=lambda: now)
        key = server_key("a-checkpoint", shard_of(ours.peer_id))
        sound = seal(ours.identity, key, b"body", now + 60)
        assert await node.store({key: sound}, now + 60)
        assert await node.get_many([key]) == {key: {ours.peer_id: (sound, now + 60)}}
        for value, until in (
            (seal(theirs.identity, key, b"body", now + 70), now + 70),
            (seal(ours.identity, "v1/another/0", b"body", now + 70), now + 70),
            (sound, now + 70),
            (seal(ours.identity, key, b"body", now + 1000), now + 1000),
            (seal(ours.identity, key, b"older", now + 50), now + 50),
            (seal(ours.identity, key, b"over", now - 1), now - 1),
        ):
            assert not await node.store({key: value}, until)
        assert await node.get_many([key]) == {key: {ours.peer_id: (sound, now + 60)}}
        later = MemoryDirectoryNode(theirs, clock=lambda: now + 61)
        assert await later.get_many([key]) == {key: {}}
        hub.isolate(ours.peer_id)
        with pytest.raises(PeerTimeoutError):
            await node.get_many([key])
        assert await later.get_many([key]) == {key: {}}

    asyncio.run(main())


async def _member(hub: MemoryNetworkHub) -> MemoryMember:
    member = await enter(Identity.create(), listen=(hub.address,))
    assert isinstance(member, MemoryMember)
    return member


def test_a_start_that_fails_leaves_nothing(tiny_llama: Path) -> None:
    before = threading.active_count()
    with pytest.raises(UsageError, match="0:9"), LocalSwarm(tiny_llama, "0:2", "0:9"):
        pass
    tasks = runtime().run(_tasks())
    assert not [name for name in tasks if "directory" in name]
    assert threading.active_count() <= before + 1


async def _tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks()]


def test_the_real_network_on_loopback_cannot_be_set(tiny_llama: Path) -> None:
    swarm = LocalSwarm(tiny_llama, loopback=True)
    with pytest.raises(UsageError, match="loopback"):
        swarm.set_path(delay_s=1.0)
    with pytest.raises(UsageError, match="no server"):
        _ = swarm.address
    swarm.close()


def test_what_the_package_exports() -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
