"""Servers that are slow and say so, whole ones in memory: they get the time that they need."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from swarm.server import hosted
from swarm.server.speed import Speed
from swarm.sessions import step_times
from swarm.testing import LocalSwarm

LATE = "a step is late"
DELAY_S = 0.25
FIRST_S = 0.2
"""Less than the two ways to a server and back; without a prediction each step is late."""


def steps_called_late(
    folder: Path,
    said: Speed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    **settings: float,
) -> int:
    """In a session's first three steps, over a server that says that it is as fast as `said`."""
    monkeypatch.setattr(hosted, "measure_speed", lambda blocks: said)
    monkeypatch.setattr(step_times, "FIRST_S", FIRST_S)
    caplog.set_level(logging.INFO, "swarm.client.remote_session")
    with (
        LocalSwarm(folder, "0:4") as swarm,
        swarm.client(**settings) as model,
        model.session(max_length=64),
    ):
        ids: Any = model.generate(torch.arange(5, 13)[None], max_new_tokens=1, do_sample=False)
        caplog.clear()
        # Only now: what a client measures of the way there is no part of what a server says.
        swarm.set_path(delay_s=DELAY_S)
        model.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        return sum(LATE in record.message for record in caplog.records)


def test_one_that_says_so_is_not_called_late(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = Speed(decode_ms_per_block=1000.0, prefill_tokens_per_s=100.0)
    # Nor is the session given up after the time that servers may be silent otherwise.
    assert steps_called_late(tiny_llama, said, monkeypatch, caplog, step_timeout_s=DELAY_S) == 0


def test_one_that_says_that_it_is_fast_is(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = Speed(decode_ms_per_block=0.1, prefill_tokens_per_s=5000.0)
    assert steps_called_late(tiny_llama, said, monkeypatch, caplog) > 0
