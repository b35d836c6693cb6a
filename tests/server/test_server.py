"""Whole servers with a tiny random model over libp2p on loopback, in the test's own process."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from raw_client import RawClient
from transformers import LlamaForCausalLM
from whole_servers import BLOCKS, Host, ServerMaker, Told, client_of, host, in_peace, until

from swarm.models.checkpoint import open_checkpoint
from swarm.server.free_memory import FreeMemory
from swarm.server.server import Server
from swarm.sessions.messages import Close, Fail, FailKind, Open, Refused, RefuseKind, Want
from swarm.spans import Span

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
