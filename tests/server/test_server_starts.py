"""Servers that cannot start, or are not let into a swarm: they say why, and leave nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from whole_servers import ServerMaker, in_peace, tiny_llama_in, until

from swarm.dht.directory import Directory
from swarm.dht.node import DhtNode
from swarm.dht.records import DIGEST_BYTES
from swarm.errors import (
    AddressError,
    BadSpanError,
    CheckpointError,
    MemoryShortError,
    ModelNotFoundError,
    ProtocolVersionError,
    UnreachablePeerError,
    UsageError,
)
from swarm.models.checkpoint import open_checkpoint
from swarm.server.identity_claim import default_identity_path
from swarm.server.server import Server
from swarm.spans import Span
from swarm.wire.frames import PROTOCOL_VERSION
from swarm.wire.identity import Identity
from swarm.wire.libp2p import Libp2pNetwork


@pytest.mark.parametrize(
    ("changes", "error", "hint"),
    [
        ({"blocks": "2:9"}, BadSpanError, "0:4"),
        ({"model": "/nonexistent/model"}, ModelNotFoundError, "no such folder"),
        ({"cache_tokens": 1 << 40}, MemoryShortError, "--cache-tokens"),
        ({"device": "abacus"}, UsageError, "--device"),
        ({"listen": ("/ip4/203.0.113.1/tcp/0",)}, AddressError, "cannot listen"),
        ({"identity": Path("/proc/nowhere")}, UsageError, "--identity"),
        (
            {"peers": (f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.create().peer_id}",)},
            UnreachablePeerError,
            "cannot reach",
        ),
    ],
)
def test_what_cannot_be_started_says_why_and_leaves_nothing(
    maker: ServerMaker, changes: dict[str, Any], error: type[Exception], hint: str
) -> None:
    async def story() -> None:
        server, told = maker.server(**{"blocks": "0:1", **changes})
        with pytest.raises(error, match=hint):
            await server.start()
        assert "online" not in told.states

    in_peace(story)


def test_a_port_in_use_is_told(maker: ServerMaker) -> None:
    async def story() -> None:
        first, _ = maker.server("0:1")
        async with first:
            port = first.address.split("/")[4]
            second, _ = maker.server("0:1", listen=(f"/ip4/127.0.0.1/tcp/{port}",))
            with pytest.raises(AddressError, match=port):
                await second.start()

    in_peace(story)


def test_an_identity_belongs_to_one_running_server(
    maker: ServerMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def story() -> None:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        first, _ = maker.server("0:1", identity=None)
        async with first:
            path = default_identity_path("server")
            same, _ = maker.server("0:1", identity=path)
            with pytest.raises(UsageError, match="in use"):
                await same.start()
            sibling, told = maker.server("0:1", identity=None)
            async with sibling:
                assert sibling.peer_id != first.peer_id
                assert str(path) + "-2" in told.events[0].text
            before = first.peer_id
        again, _ = maker.server("0:1", identity=None)
        async with again:
            assert again.peer_id == before

    in_peace(story)


def test_a_start_that_is_cancelled_leaves_nothing(maker: ServerMaker) -> None:
    async def story() -> None:
        server, told = maker.server("0:4")
        starting = asyncio.ensure_future(server.start())
        await until(lambda: "listening" in told.states)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    in_peace(story)


# ---- a swarm that does not fit


def test_other_weights_under_the_same_name_are_refused(maker: ServerMaker, tmp_path: Path) -> None:
    async def story() -> None:
        other = ServerMaker(tiny_llama_in(tmp_path / "tiny", seed=1), tmp_path)
        renamed = ServerMaker(tiny_llama_in(tmp_path / "other", seed=1), tmp_path)
        first, _ = maker.server("0:4")
        async with first:
            wrong, _ = other.server("0:4", peers=(first.address,), identity=tmp_path / "wrong")
            with pytest.raises(CheckpointError, match="another checkpoint as tiny"):
                await wrong.start()
            # Under a name of its own it is another model, and one swarm may serve two.
            second, told = renamed.server(
                "0:4", peers=(first.address,), identity=tmp_path / "second"
            )
            async with second:
                notices = [event.text for event in told.events if event.event == "notice"]
                assert any("which serves tiny" in text for text in notices)

    in_peace(story)


@asynccontextmanager
async def stranger_like(started: Server, **changes: Any) -> AsyncIterator[str]:
    """The address of a peer that only announces a record like that of `started`."""
    network = await Libp2pNetwork.create(Identity.create(), initial_peers=[started.address])
    node = await DhtNode.create(network)
    directory = Directory(node)
    checkpoint = await asyncio.to_thread(lambda: open_checkpoint(started.config.model).identity)
    [like] = await directory.snapshot(checkpoint)
    assert len(like.block_digests) == DIGEST_BYTES * len(started.span)
    where = {"addresses": tuple(one.partition("/p2p/")[0] for one in network.addresses)}
    record = like.model_copy(update={"peer": network.peer_id, **where, **changes})
    assert await directory.announce(record)
    yield network.addresses[0]
    await directory.close()
    await node.close()
    await network.close()


def test_weights_that_differ_from_those_of_the_swarm_are_refused(maker: ServerMaker) -> None:
    async def story() -> None:
        first, _ = maker.server("0:2")
        async with first, stranger_like(first, span=Span(3, 4), block_digests=b"damn"):
            wrong, _ = maker.server("2:4", peers=(first.address,))
            with pytest.raises(CheckpointError, match="block 3 of tiny is damaged here"):
                await wrong.start()
            right, _ = maker.server("1:3", peers=(first.address,))
            async with right:
                pass

    in_peace(story)


def test_servers_of_another_protocol_are_not_joined(maker: ServerMaker) -> None:
    async def story() -> None:
        first, _ = maker.server("0:2")
        async with first, stranger_like(first, protocol=PROTOCOL_VERSION + 1) as address:
            mixed, _ = maker.server("2:4", peers=(first.address,))
            async with mixed:  # there is still somebody to talk to
                pass
            await first.stop()
            lonely, _ = maker.server("2:4", peers=(address,))
            theirs, ours = PROTOCOL_VERSION + 1, PROTOCOL_VERSION
            with pytest.raises(
                ProtocolVersionError, match=rf"speak version {theirs} .* we speak {ours}; update"
            ):
                await lonely.start()

    in_peace(story)


def test_a_model_whose_servers_have_left_is_forgotten(maker: ServerMaker, tmp_path: Path) -> None:
    async def story() -> None:
        namesake = ServerMaker(tiny_llama_in(tmp_path / "tiny", seed=1), tmp_path / "keys")
        bootstrap = await Libp2pNetwork.create(Identity.create())
        node = await DhtNode.create(bootstrap)
        address = bootstrap.addresses[0]
        first, _ = maker.server("0:4", peers=(address,))
        async with first:
            assert [entry.model for entry in await Directory(node).models()] == ["tiny"]
        assert await Directory(node).models() == []
        second, _ = namesake.server("0:4", peers=(address,))
        async with second:
            [entry] = await Directory(node).models()
            assert entry.checkpoint != open_checkpoint(str(maker.model)).identity
        await node.close()
        await bootstrap.close()

    in_peace(story)
