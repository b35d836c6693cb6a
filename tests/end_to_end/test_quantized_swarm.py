"""Servers with int8 and nf4 weights: announced, never mixed unasked, as exact as they say."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import SIZES, plain_model, save_tiny, some_ids

from swarm.errors import MissingBlocksError
from swarm.models.quantization import LIBRARIES
from swarm.server.events import ServerEvent
from swarm.testing import LocalSwarm

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in LIBRARIES.values()),
    reason="torchao and bitsandbytes are not installed",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setitem(SIZES, "hidden_size", 64)
    monkeypatch.setitem(SIZES, "intermediate_size", 128)
    save_tiny("llama", tmp_path / "tiny")
    yield tmp_path / "tiny"


def logits_error(remote: Any, plain: Any) -> tuple[float, float]:
    """Relative error of the logits, and KL divergence from plain's next-token distributions."""
    ids = some_ids(48)
    with torch.no_grad():
        found, expected = remote(ids).logits, plain(ids).logits
    divergence = torch.nn.functional.kl_div(
        found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="none"
    )
    error = (found - expected).norm() / expected.norm()
    return float(error), float(divergence.sum(-1).mean())


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.03), ("nf4", 0.5)])
def test_a_quantized_swarm_generates_within_what_it_announces(
    folder: Path, kind: str, most: float
) -> None:
    events: list[ServerEvent] = []
    with LocalSwarm(folder, quantization=kind) as swarm:
        for blocks in ("0:1", "1:4"):
            swarm.start(blocks, on_event=events.append)
        online = [event.fields for event in events if event.event == "online"]
        assert [fields["quantization"] for fields in online] == [kind, kind]
        announced = [fields["quantization_error"] for fields in online]
        assert all(0 < error < most for error in announced)
        said = [event.text for event in events if event.event == "online"]
        assert all(f"({kind}) on cpu" in text and "% from float32" in text for text in said)
        with swarm.client() as remote:
            plain = plain_model(folder)
            error, divergence = logits_error(remote, plain)
            # The errors of the four blocks add up at most; norm and head are linear but for the
            # norm's scale, and the probe is not this text: twice the sum.
            assert 0 < error < 2 * (announced[0] + 3 * announced[1])
            # To second order the divergence is half the variance of the logits' error.
            spread = float(plain(some_ids(48)).logits.std())
            assert divergence < (error * spread) ** 2 + 1e-6
            ids = some_ids(7)
            told = remote.generate(ids, max_new_tokens=12, do_sample=False)
            assert torch.equal(remote.generate(ids, max_new_tokens=12, do_sample=False), told)


def test_numerics_mix_only_if_the_user_says_so(folder: Path) -> None:
    with LocalSwarm(folder, "0:2") as swarm:
        swarm.start("2:4", quantization="int8")
        with (
            swarm.client(missing_timeout_s=0.1) as remote,
            pytest.raises(MissingBlocksError, match="mix") as caught,
        ):
            remote.generate(some_ids(5), max_new_tokens=2)
        assert "float32 (int8) on cpu" in str(caught.value)
        with swarm.client(mix_numerics=True) as remote:
            error, _ = logits_error(remote, plain_model(folder))
            assert 0 < error < 0.03


def test_stored_weights_decide_who_is_of_one_swarm(folder: Path) -> None:
    """A quantized server has the identity and the digests of the stored checkpoint."""
    with LocalSwarm(folder, "0:4") as swarm:
        quantized = swarm.start("0:4", quantization="int8")
        records = [server._record() for server in swarm.servers]
        assert len({record.checkpoint for record in records}) == 1
        assert len({record.block_digests for record in records}) == 1
        assert {record.numerics.quantization for record in records} == {"none", "int8"}
        assert quantized.state == "online"
