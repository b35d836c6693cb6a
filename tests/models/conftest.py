"""What the tests of models share."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import platformdirs
import pytest
from hub_stand_in import StandIn, running_hub, turn_to
from huggingface_hub import constants
from tiny_models import SIZES, save_tiny
from transformers import PreTrainedModel

from swarm.models import remote_file

LARGER = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 512}
"""So that headers are small beside the weights."""


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    for name, value in LARGER.items():
        monkeypatch.setitem(SIZES, name, value)
    return save_tiny("llama", tmp_path / "files")


@pytest.fixture
def hub(
    tmp_path: Path, plain: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StandIn]:
    """One big file; the user's cache is empty and nobody is logged in."""
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    monkeypatch.setattr(remote_file, "MAX_FAILURES", 1)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running_hub(tmp_path / "files") as hub:
        turn_to(hub, tmp_path / "hub", monkeypatch)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield hub
        huggingface_hub.close_session()
