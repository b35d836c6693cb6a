"""What a volunteer sets and sees, with whole servers: the report adds up, limits hold, forwarded
ports work."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import greedy, plain_model, some_ids

from swarm.server.events import ServerEvent
from swarm.server.server import Server
from swarm.testing import LocalSwarm
from swarm.wire.upload_limit import BURST_S

PROMPT, NEW = 24, 10


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> torch.Tensor:
    return greedy(plain_model(tiny_llama), some_ids(PROMPT), NEW)


class Told:
    """What a server said."""

    def __init__(self) -> None:
        self.events: list[ServerEvent] = []

    def __call__(self, event: ServerEvent) -> None:
        self.events.append(event)

    def report(self, swarm: LocalSwarm, server: Server) -> dict[str, Any]:
        swarm.call(server.tell_now)
        assert self.events[-1].event == "stats"
        return dict(self.events[-1].fields)


def test_a_report_adds_up_under_a_limit(tiny_llama: Path, expected: torch.Tensor) -> None:
    first_told, second_told = Told(), Told()
    with LocalSwarm(
        tiny_llama, max_upload_mbit=2.0, max_memory="64MiB", cache_tokens=None
    ) as swarm:
        first = swarm.start("0:2", name="attic", on_event=first_told)
        second = swarm.start("2:4", name="東京 cellar", on_event=second_told)
        with swarm.client() as model:
            assert torch.equal(greedy(model, some_ids(PROMPT), NEW), expected)
            swarm.wait_until_free()
            reports = [first_told.report(swarm, first), second_told.report(swarm, second)]
            for report in reports:
                assert report["prefill_tokens"] + report["decode_tokens"] == PROMPT + NEW - 1
                assert report["cache_tokens_free"] == report["cache_tokens_total"]
                assert report["max_upload_mbit"] == 2.0
                assert report["uptime_s"] >= 0 and report["busy_s"] > 0
                assert report["accepted_streams"] >= 1
                assert {peer["kind"] for peer in report["peers"]} == {"client", "server"}
            [to_second] = [one for one in reports[0]["peers"] if one["kind"] == "server"]
            [to_first] = [one for one in reports[1]["peers"] if one["kind"] == "server"]
            assert (to_second["peer"], to_first["peer"]) == (second.peer_id, first.peer_id)
            assert to_first["name"] == "attic"
            # Between the two reports at most a ping was under way.
            assert abs(to_second["sent"] - to_first["received"]) < 500
            assert to_second["sent"] > PROMPT * 64 * 4 / 2
            # What strangers get says nothing of our peers.
            assert "peers" not in swarm.call(first.status)
        [memory] = [event for event in first_told.events if event.text.startswith("memory: ")]
        needs, cache = memory.fields["weights_bytes"], memory.fields["cache_bytes"]
        assert needs > 0 and needs + cache <= memory.fields["lent_bytes"] == 64 << 20
        online = next(event for event in first_told.events if event.event == "online")
        assert online.fields["cache_tokens"] == memory.fields["cache_tokens"]


def test_a_server_uploads_no_faster_than_its_owner_says(tiny_llama: Path) -> None:
    ids = some_ids(100)
    activations, prompt_bytes = 32 * 4, 100 * 32 * 4
    with LocalSwarm(tiny_llama) as swarm:
        swarm.start("0:2", max_upload_mbit=0.1)
        swarm.start("2:4")
        with swarm.client() as model, model.session(max_length=128):
            greedy(model, ids[:, :1], 1)
            began = time.monotonic()
            greedy(model, ids, 1)
            # What may go at once after a pause is little, and one token was there.
            least = prompt_bytes - 2 * activations - BURST_S * 0.1e6 / 8
            assert time.monotonic() - began >= least / (0.1e6 / 8)


def test_a_server_is_reached_through_a_forwarded_port(
    tiny_llama: Path, expected: torch.Tensor
) -> None:
    """As behind a router: what others are told is the router's port, and only that is used."""
    with forwarded_port() as (public, private, forwarder):
        with LocalSwarm(tiny_llama, loopback=True) as swarm:
            announced = f"/ip4/127.0.0.1/tcp/{public}"
            server = swarm.start(
                "0:4", listen=(f"/ip4/127.0.0.1/tcp/{private}",), announce=(announced,)
            )
            assert server.address == f"{announced}/p2p/{server.peer_id}"
            with swarm.client() as model:
                assert torch.equal(greedy(model, some_ids(PROMPT), NEW), expected)
        assert forwarder.bytes > PROMPT * 64 * 4


class Forwarder:
    """A router's forwarded port."""

    def __init__(self, private: int) -> None:
        self.bytes = 0
        self._private = private

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._private)
        ways = [self._pass(reader, inner_writer), self._pass(inner_reader, writer)]
        await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.bytes += len(data)
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@contextlib.contextmanager
def forwarded_port() -> Iterator[tuple[int, int, Forwarder]]:
    """`(public port, private port, the forwarder)`; it runs in a thread of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        private = free.getsockname()[1]
    forwarder, loop = Forwarder(private), asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(forwarder.serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, name="forwarder")
    thread.start()
    try:
        yield listening.sockets[0].getsockname()[1], private, forwarder
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()
        loop.run_until_complete(listening.wait_closed())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
