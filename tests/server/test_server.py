"""Whole servers with a tiny random model over libp2p on loopback, in the test's own process."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from libp2p_peers import run_in_peace
from raw_client import RawClient
from tiny_models import save_tiny
from transformers import LlamaForCausalLM

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
from swarm.server.config import ServerConfig, make_config
from swarm.server.free_memory import FreeMemory
from swarm.server.identity_claim import default_identity_path
from swarm.server.lifecycle import ServerEvent
from swarm.server.server import Server
from swarm.sessions.messages import Close, Fail, FailKind, Open, Refused, RefuseKind, Want
from swarm.spans import PeerId, Span
from swarm.wire.frames import PROTOCOL_VERSION
from swarm.wire.identity import Identity
from swarm.wire.libp2p import Libp2pNetwork

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
BLOCKS = 4


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_in(tmp_path_factory.mktemp("models") / "tiny", seed=0)


def tiny_llama_in(folder: Path, seed: int) -> Path:
    save_tiny("llama", folder, seed=seed, blocks=BLOCKS)
    return folder


@dataclass(frozen=True)
class Host:
    """A server as `RawClient` wants it."""

    peer: PeerId
    span: Span


@dataclass
class Told:
    """What servers said, in order."""

    events: list[ServerEvent] = field(default_factory=list)

    def __call__(self, event: ServerEvent) -> None:
        self.events.append(event)

    @property
    def states(self) -> list[str]:
        """Without notices, each once in a row."""
        names = [event.event for event in self.events if event.event != "notice"]
        return [name for index, name in enumerate(names) if names[index - 1 : index] != [name]]

    def last(self, name: str) -> dict[str, Any]:
        return next(event.fields for event in reversed(self.events) if event.event == name)


class ServerMaker:
    """Starts servers with defaults for tests; they are stopped by `with`."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self.count = 0

    def server(self, blocks: str | None = None, **changes: Any) -> tuple[Server, Told]:
        self.count += 1
        values: dict[str, Any] = {
            "model": str(self.model),
            "blocks": blocks,
            "listen": (LOOPBACK,),
            "identity": self.folder / f"identity-{self.count}",
            "threads": 1,
            "cache_tokens": 512,
        }
        told = Told()
        return Server(make_config(ServerConfig, **{**values, **changes}), on_event=told), told


@pytest.fixture
def maker(model_folder: Path, tmp_path: Path) -> ServerMaker:
    return ServerMaker(model_folder, tmp_path)


def in_peace(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs the story; no task, thread, process or open file may be left."""
    before = set(threading.enumerate())
    run_in_peace(story())
    left = [one.name for one in threading.enumerate() if one not in before]
    assert not [name for name in left if name.startswith("swarm")]


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[RawClient]:
    identity = Identity.create()
    network = await Libp2pNetwork.create(identity, initial_peers=[server.address], client_only=True)
    checkpoint = await asyncio.to_thread(lambda: open_checkpoint(server.config.model).identity)
    client = RawClient(identity, network, checkpoint)
    await client.links.start()
    try:
        yield client
    finally:
        await client.links.close()
        await network.close()


def host(server: Server) -> Host:
    return Host(server.peer_id, server.span)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come; the test's own timeout ends it if it never does."""
    for _ in itertools.count():
        if condition():
            return
        await asyncio.sleep(0.02)


# ---- serving


def test_two_servers_give_the_models_own_logits(maker: ServerMaker) -> None:
    async def story() -> None:
        first, told = maker.server("0:2")
        async with first:
            second, _ = maker.server("2:4", peers=(first.address,))
            async with second, client_of(first) as client:
                await check_logits([host(first), host(second)], client, maker.model)
                await check_books(first, second)
                check_status(first.status())
            assert first.status()["sessions"] == 0
        assert told.states == ["loading", "listening", "loading", "online", "draining", "stopped"]
        check_events(told)

    async def check_logits(hosts: list[Host], client: RawClient, folder: Path) -> None:
        plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ids = torch.randint(0, 96, (1, 12), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = plain(ids).logits[0]
            hidden = plain.model.embed_tokens(ids)[0]
        grant = await client.open(hosts, length=64)
        outputs = []
        for seq, (start, end) in enumerate([(0, 9), (9, 10), (10, 12)]):
            changes = {"seq": seq, "want": Want.ALL}
            await client.push(hosts[0], grant, hidden[start:end].clone(), start, **changes)
            _, answer = await client.receive_output()
            assert answer is not None
            outputs.append(answer)
        with torch.inference_mode():
            logits = plain.lm_head(plain.model.norm(torch.cat(outputs)))
        assert torch.allclose(logits, expected, atol=1e-4)
        for one in hosts:
            await client.send(one, Close(grant.session))

    async def check_books(*servers: Server) -> None:
        for server in servers:
            await until(lambda server=server: server.status()["sessions"] == 0)  # type: ignore[misc]
            status = server.status()
            assert status["cache_tokens_free"] == status["cache_tokens_total"] == 512

    def check_status(status: dict[str, Any]) -> None:
        assert status["blocks"] == "0:2" and status["state"] == "online"
        assert status["dtype"] == "float32"
        assert status["decode_ms_per_block"] > 0 and status["prefill_tokens_per_s"] > 0
        assert status["streams"] == 2 and status["tasks"] > 0 and status["open_files"] > 0

    def check_events(told: Told) -> None:
        online, listening = told.last("online"), told.last("listening")
        assert online["address"] == listening["address"]
        assert listening["address"].startswith("/ip4/127.0.0.1/tcp/")
        assert online["blocks"] == "0:2"
        missing = [e.fields["missing"] for e in told.events if "missing" in e.fields]
        assert missing[0] == ["2:4"]

    in_peace(story)


def test_a_server_reads_its_own_blocks_only(maker: ServerMaker) -> None:
    async def story() -> None:
        checkpoint = open_checkpoint(str(maker.model))
        stored = checkpoint.block_tensors(Span(1, 2)).values()
        server, _ = maker.server("1:2")
        async with server:
            own = sum(checkpoint.tensors[name].nbytes for name in stored)
            assert server.bytes_read == own

    in_peace(story)


def test_a_client_gets_no_more_than_its_share(maker: ServerMaker) -> None:
    async def story() -> None:
        server, _ = maker.server("0:4", tokens_per_client=128)
        async with server, client_of(server) as client:
            await client.open([host(server)], length=64)
            grant = client.grant([host(server)], length=65)
            await client.send(host(server), Open(client.sign(grant), 0))
            assert (await client.receive(Refused)).why is RefuseKind.QUOTA

    in_peace(story)


def test_statistics_are_told(maker: ServerMaker) -> None:
    async def story() -> None:
        server, told = maker.server("0:1", stats_s=0.05, cache_tokens=100)
        async with server:
            await until(lambda: "stats" in told.states)
            assert server.status()["cache_tokens_total"] == 128
        online = next(event for event in told.events if event.event == "online")
        assert "cache for 128 tokens (100 asked, in whole pages of 64)" in online.text
        stats = told.last("stats")
        assert stats["blocks"] == "0:1" and stats["passes"] == 0 and stats["busy_s"] == 0

    in_peace(story)


# ---- draining


def test_draining_waits_for_sessions_and_takes_no_new_ones(maker: ServerMaker) -> None:
    async def story() -> None:
        server, told = maker.server("0:4", drain_timeout_s=600)
        await server.start()
        async with client_of(server) as client:
            grant = await client.open([host(server)])
            stopping = asyncio.ensure_future(server.stop())
            await until(lambda: "draining" in told.states)
            await client.send(host(server), Open(client.sign(client.grant([host(server)])), 0))
            assert (await client.receive(Refused)).why is RefuseKind.DRAINING
            await client.push(host(server), grant, torch.ones(2, 32))
            await client.receive_output()
            assert not stopping.done()
            await client.send(host(server), Close(grant.session))
            await stopping
        assert told.states[-2:] == ["draining", "stopped"]

    in_peace(story)


def test_a_second_call_cuts_draining_short(maker: ServerMaker) -> None:
    async def story() -> None:
        server, _ = maker.server("0:4", drain_timeout_s=600)
        await server.start()
        async with client_of(server) as client:
            grant = await client.open([host(server)])
            stopping = asyncio.ensure_future(server.stop())
            assert (await client.receive(Fail)).why is FailKind.DRAINING
            await server.stop(drain=False)
            fail = await client.receive(Fail)
            assert (fail.session, fail.why) == (grant.session, FailKind.SHUTTING_DOWN)
            await stopping

    in_peace(story)


# ---- which blocks


def test_without_blocks_a_server_takes_all_that_fit_and_then_the_least_covered(
    maker: ServerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        whole, _ = maker.server()
        async with whole:
            assert whole.span == Span(0, BLOCKS)
        first, _ = maker.server("0:2")
        async with first:
            second, _ = maker.server(peers=(first.address,))
            needs = _needs_of(maker.model)
            room = 2.5 * (needs.block_bytes[0] + needs.cache(Span(0, 1), 512))
            free = int(room) + memory.RESERVE_BYTES
            few = FreeMemory(free, "here")
            monkeypatch.setattr("swarm.server.server.free_memory", lambda _: few)
            async with second:
                assert second.span == Span(2, 4)

    from swarm.server import memory
    from swarm.server.hosting import memory_needs

    def _needs_of(folder: Path) -> memory.MemoryNeeds:
        return memory_needs(open_checkpoint(str(folder)), torch.float32)

    in_peace(story)


# ---- what cannot be


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
    record = like.model_copy(update={"peer": network.peer_id, **changes})
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
            with pytest.raises(
                ProtocolVersionError, match=r"speak version 2 .* we speak 1; update"
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


def test_a_start_that_is_cancelled_leaves_nothing(maker: ServerMaker) -> None:
    async def story() -> None:
        server, told = maker.server("0:4")
        starting = asyncio.ensure_future(server.start())
        await until(lambda: "listening" in told.states)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    in_peace(story)
