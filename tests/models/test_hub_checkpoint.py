"""Hub names: which files are fetched, at which commit, and what is said when that fails."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import platformdirs
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tiny_models import save_tiny
from transformers import PreTrainedModel

from swarm.errors import ModelNotFoundError
from swarm.models import hub
from swarm.models.checkpoint import open_checkpoint
from swarm.spans import Span

COMMIT = "0123456789012345678901234567890123456789"


class LocalHub:
    """Stands in for the hub: a folder with all files, of which some are in the cache."""

    def __init__(self, files: Path, cache: Path) -> None:
        self.files = files
        self.snapshot = cache / COMMIT
        self.snapshot.mkdir(parents=True)
        self.fetched: list[str] = []
        self.ranged_bytes = 0

    def snapshot_download(
        self, name: str, *, revision: str | None, allow_patterns: list[str]
    ) -> str:
        assert revision in (None, "main", COMMIT)
        for path in self.files.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, self.snapshot)
        return str(self.snapshot)

    def hf_hub_download(self, name: str, filename: str, *, revision: str) -> str:
        assert (name, revision) == ("org/tiny", COMMIT)
        self.fetched.append(filename)
        return str(shutil.copy(self.files / filename, self.snapshot))

    def try_to_load_from_cache(self, name: str, filename: str, *, revision: str) -> str | None:
        path = self.snapshot / filename
        return str(path) if path.exists() else None

    def info(self, remote: str) -> dict[str, int]:
        return {"size": self._path(remote).stat().st_size}

    def cat_file(self, remote: str, *, start: int, end: int) -> bytes:
        self.ranged_bytes += end - start
        return self._path(remote).read_bytes()[start:end]

    def file_exists(self, name: str, filename: str, *, revision: str) -> bool:
        return (self.files / filename).exists()

    def _path(self, remote: str) -> Path:
        repository, _, name = remote.rpartition("/")
        assert repository == f"org/tiny@{COMMIT}"
        return self.files / name


@pytest.fixture
def plain(tmp_path: Path) -> PreTrainedModel:
    return save_tiny("llama", tmp_path / "files", max_shard_size="30KB")


@pytest.fixture
def local_hub(tmp_path: Path, plain: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    standin = LocalHub(tmp_path / "files", tmp_path / "hub")
    for name in ("snapshot_download", "hf_hub_download", "try_to_load_from_cache"):
        monkeypatch.setattr(hub, name, getattr(standin, name))
    monkeypatch.setattr(hub, "HfFileSystem", lambda: standin)
    monkeypatch.setattr(hub, "HfApi", lambda: standin)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    return standin


def test_only_the_needed_shards_are_fetched(local_hub: LocalHub, plain: PreTrainedModel) -> None:
    checkpoint = open_checkpoint("org/tiny")
    assert local_hub.fetched == []
    names = checkpoint.block_tensors(Span(1, 2)).values()
    expected = plain.state_dict()
    for name, tensor in checkpoint.read(names).items():
        assert torch.equal(tensor, expected[name])
    shards = {path.name for path in local_hub.files.glob("*.safetensors")}
    assert set(local_hub.fetched) < shards
    assert checkpoint.num_blocks == 4
    assert checkpoint.name == "org/tiny"


def test_identity_needs_no_shard(local_hub: LocalHub) -> None:
    checkpoint = open_checkpoint("org/tiny", "main")
    assert checkpoint.identity == open_checkpoint(str(local_hub.files)).identity
    assert local_hub.fetched == []
    whole = sum(path.stat().st_size for path in local_hub.files.glob("*.safetensors"))
    assert local_hub.ranged_bytes < whole / 2


def test_a_single_file(local_hub: LocalHub, tmp_path: Path) -> None:
    shutil.rmtree(local_hub.files)
    save_tiny("llama", local_hub.files)
    checkpoint = open_checkpoint("org/tiny")
    checkpoint.read(["model.norm.weight"])
    assert local_hub.fetched == ["model.safetensors"]


def test_no_safetensors(local_hub: LocalHub) -> None:
    for path in local_hub.files.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(ModelNotFoundError, match="no safetensors"):
        open_checkpoint("org/tiny")


def _http(kind: type[HfHubHTTPError]) -> HfHubHTTPError:
    error = kind.__new__(kind)
    Exception.__init__(error, "404\nmany lines")
    return error


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (lambda: _http(RepositoryNotFoundError), "no such model"),
        (lambda: _http(RevisionNotFoundError), "revision"),
        (lambda: _http(GatedRepoError), "consent"),
        (lambda: LocalEntryNotFoundError("not here"), "HF_HUB_OFFLINE"),
        (lambda: ConnectionError("refused"), "cannot be reached"),
    ],
)
def test_failures_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], named: str
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error()

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ModelNotFoundError, match=named) as caught:
        open_checkpoint("org/tiny")
    assert "\n" not in str(caught.value)
    assert "org/tiny" in str(caught.value)


def test_the_real_cache_is_used_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE"):
        open_checkpoint("org/tiny")
    repository = tmp_path / "hub" / "models--org--tiny"
    plain = save_tiny("llama", repository / "snapshots" / COMMIT, max_shard_size="30KB")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    checkpoint = open_checkpoint("org/tiny")
    (tensor,) = checkpoint.read(["model.norm.weight"]).values()
    assert torch.equal(tensor, plain.state_dict()["model.norm.weight"])
    assert checkpoint.identity
