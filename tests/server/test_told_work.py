"""What the events `stats` tell of work that real servers did, and of the link between them; and
listeners that fail."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from swarm.server.events import ServerEvent
from swarm.testing import LocalSwarm

PROMPT_TOKENS, NEW_TOKENS = 40, 6
PATIENCE_S = 60.0


class Told:
    """The first `stats` that tell of all that was computed."""

    def __init__(self) -> None:
        self.complete = threading.Event()
        self.fields: dict[str, Any] = {}

    def __call__(self, event: ServerEvent) -> None:
        if event.event != "stats" or self.complete.is_set():
            return
        if event.fields["decode_tokens"] == NEW_TOKENS - 1:
            self.fields = event.fields
            self.complete.set()


def test_a_server_tells_tokens_waits_shares_and_how_its_links_are(tiny_llama: Path) -> None:
    told = Told()
    ids = torch.arange(PROMPT_TOKENS)[None] + 3
    with LocalSwarm(tiny_llama) as swarm:
        first = swarm.start("0:2", on_event=told, stats_s=0.05)
        second = swarm.start("2:4")
        swarm.set_path(delay_s=0.002)
        with swarm.client() as model:
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
            )
            assert told.complete.wait(PATIENCE_S)
    fields = told.fields
    assert fields["peer"] == first.peer_id
    assert fields["prefill_tokens"] == PROMPT_TOKENS
    assert fields["decode_queue_ms"] > 0 and fields["prefill_queue_ms"] > 0
    assert 0 < fields["decode_share"] < 1
    assert fields["waiting_jobs"] == fields["waiting_tokens"] == 0
    (link,) = [peer for peer in fields["peers"] if peer["peer"] == second.peer_id]
    assert link["min_rtt_ms"] >= 4 and link["rate_bytes_per_s"] > 0
    assert link["window_bytes"] >= link["fragment_bytes"] > 0
    assert link["decode_active"]
    assert link["sent"] > PROMPT_TOKENS * 32 * 4, "the prompt's activations"


def test_a_listener_that_fails_ends_no_server(
    tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And a server that stops closes everything all the same."""
    told: list[str] = []

    def listener(event: ServerEvent) -> None:
        told.append(event.event)
        raise RuntimeError("nobody listens")

    with LocalSwarm(tiny_llama) as swarm:
        first = swarm.start("0:4", on_event=listener)
        swarm.call(first.tell_now)
        with swarm.client() as model:
            ids = torch.arange(4)[None] + 3
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)
        swarm.stop(first)
    assert {"listening", "online", "stats", "draining"} <= set(told)
    assert told[-1] == "stopped"
    assert "the event 'online' was not told" in caplog.text
