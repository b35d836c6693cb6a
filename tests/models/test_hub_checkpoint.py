"""Models on the hub: only the needed bytes, once, resumed, in the usual cache."""

import struct
import threading
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_parts import assert_equal, fetch, names_of, stored
from hub_stand_in import COMMIT, REPOSITORY, StandIn
from huggingface_hub import constants
from torch import nn
from transformers import PreTrainedModel

from swarm.errors import ModelNotFoundError
from swarm.models import hub_shard
from swarm.models.checkpoint import open_checkpoint
from swarm.models.shell import load_shell


def test_only_the_bytes_of_a_span_are_fetched_and_only_once(
    hub: StandIn, plain: PreTrainedModel
) -> None:
    checkpoint = open_checkpoint(REPOSITORY)
    assert (checkpoint.name, checkpoint.commit, checkpoint.num_blocks) == (REPOSITORY, COMMIT, 4)
    header, (size,) = (
        hub.weight_bytes,
        struct.unpack("<Q", next(hub.files.glob("*.s*")).open("rb").read(8)),
    )
    assert header == 8 + size
    first = names_of(checkpoint, 1, 3)
    told = fetch(checkpoint, first)
    assert hub.weight_bytes - header == stored(checkpoint, first) < hub.whole() / 2
    assert told[-1] == (stored(checkpoint, first), stored(checkpoint, first))
    assert_equal(checkpoint, first, plain)
    assert fetch(checkpoint, first) == []
    # A next program finds them, headers too, and fetches only what is new to it.
    again = open_checkpoint(REPOSITORY)
    assert_equal(again, first, plain)
    second = names_of(again, 2, 4)
    assert fetch(again, second)[-1][0] == stored(again, names_of(again, 3, 4))
    assert hub.weight_bytes - header == stored(again, names_of(again, 1, 4))
    assert_equal(again, second, plain)


def test_only_the_needed_shards_are_asked_for(hub: StandIn, plain: PreTrainedModel) -> None:
    next(hub.files.glob("*.safetensors")).unlink()
    plain.save_pretrained(hub.files, max_shard_size="150KB")
    checkpoint = open_checkpoint(REPOSITORY, "main")
    headers = hub.weight_bytes
    hub.weight_requests.clear()
    names = names_of(checkpoint, 1, 2)
    assert_equal(checkpoint, names, plain)  # without `fetch` before: tensor by tensor
    assert hub.weight_bytes - headers == stored(checkpoint, names)
    shards = {path.name for path in hub.files.glob("*.safetensors")}
    assert len(shards) > 3
    assert {name for name, _ in hub.weight_requests} < shards


def test_identity_and_digests_are_those_of_the_folder(hub: StandIn) -> None:
    checkpoint, folder = open_checkpoint(REPOSITORY), open_checkpoint(str(hub.files))
    assert checkpoint.identity == folder.identity
    assert hub.weight_bytes < hub.whole() / 10
    assert checkpoint.block_digest(2) == folder.block_digest(2)
    requests = len(hub.weight_requests)
    assert open_checkpoint(REPOSITORY).identity == checkpoint.identity
    assert len(hub.weight_requests) == requests


@pytest.mark.parametrize("pieces", [4096, 32 << 20], ids=["many-pieces", "one-piece"])
def test_a_broken_connection_goes_on_where_it_broke(
    hub: StandIn, plain: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    monkeypatch.setattr(hub_shard, "PIECE_BYTES", pieces)
    checkpoint = open_checkpoint(REPOSITORY)
    header, names = hub.weight_bytes, names_of(checkpoint, 0, 4)
    hub.faults.breaks = [1000]
    fetch(checkpoint, names)
    assert hub.weight_bytes - header == stored(checkpoint, names)
    assert_equal(checkpoint, names, plain)


def test_a_fetch_that_failed_is_resumed_by_the_next_program(
    hub: StandIn, plain: PreTrainedModel
) -> None:
    checkpoint = open_checkpoint(REPOSITORY)
    header, names = hub.weight_bytes, names_of(checkpoint, 0, 4)
    hub.faults.breaks = [70_000, 5, 0]
    with pytest.raises(ModelNotFoundError, match=r"breaks off.*start again") as caught:
        fetch(checkpoint, names)
    assert "\n" not in str(caught.value)
    assert hub.weight_bytes - header >= 70_000
    again = open_checkpoint(REPOSITORY)
    total = fetch(again, names)[-1][1]
    assert total <= stored(again, names) - 70_000
    assert hub.weight_bytes - header == stored(again, names)
    assert_equal(again, names, plain)


def test_what_a_killed_program_left_is_kept(hub: StandIn, plain: PreTrainedModel) -> None:
    checkpoint = open_checkpoint(REPOSITORY)
    header, names = hub.weight_bytes, names_of(checkpoint, 0, 4)
    fetch(checkpoint, names)
    largest = max(ranges(hub), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    largest.unlink()
    # The state in which SIGKILL leaves a range that is on its way.
    largest.with_name(largest.name.partition("-")[0] + ".part").write_bytes(data[:30_000])
    again = open_checkpoint(REPOSITORY)
    fetch(again, names)
    assert_equal(again, names, plain)
    assert hub.weight_bytes - header == stored(again, names) + len(data) - 30_000


def ranges(hub: StandIn) -> list[Path]:
    folder = Path(constants.HF_HUB_CACHE) / "models--org--tiny" / hub_shard.FOLDER
    return [path for path in folder.glob("*/*-*") if path.is_file()]


def test_progress_may_end_it_and_nothing_is_lost(hub: StandIn, plain: PreTrainedModel) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done:
            raise StopError

    checkpoint = open_checkpoint(REPOSITORY)
    header, names = hub.weight_bytes, names_of(checkpoint, 0, 4)
    with pytest.raises(StopError):
        checkpoint.fetch(names, stop)
    kept = sum(path.stat().st_size for path in ranges(hub)) - header
    assert (
        fetch(checkpoint, names)[-1][1]
        == stored(checkpoint, names) - kept
        < stored(checkpoint, names)
    )
    assert_equal(checkpoint, names, plain)


def test_two_programs_fetch_nothing_twice(hub: StandIn, plain: PreTrainedModel) -> None:
    checkpoints = [open_checkpoint(REPOSITORY) for _ in range(2)]
    header, names = hub.weight_bytes, names_of(checkpoints[0], 0, 4)
    threads = [threading.Thread(target=fetch, args=(one, names)) for one in checkpoints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.weight_bytes - header == stored(checkpoints[0], names)
    for checkpoint in checkpoints:
        assert_equal(checkpoint, names, plain)


def test_the_token_goes_to_the_hub_alone(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.token = "hf_right"
    with pytest.raises(ModelNotFoundError, match="hf auth login"):
        open_checkpoint(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ModelNotFoundError, match="hf auth login"):
        open_checkpoint(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    checkpoint = open_checkpoint(REPOSITORY)
    fetch(checkpoint, names_of(checkpoint, 0, 1))
    assert hub.tokens["localhost"] == {None}
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text("hf_right")  # what `hf auth login` stores
    fetch(open_checkpoint(REPOSITORY), names_of(checkpoint, 1, 2))
    assert hub.tokens["localhost"] == {None}


def test_offline_what_was_fetched_is_served(
    hub: StandIn, plain: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(REPOSITORY)
    names = names_of(checkpoint, 0, 2)
    fetch(checkpoint, names)
    identity = checkpoint.identity
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    sent = hub.weight_bytes
    offline = open_checkpoint(REPOSITORY)
    assert offline.identity == identity
    assert_equal(offline, names, plain)
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE"):
        fetch(offline, names_of(offline, 2, 3))
    assert hub.weight_bytes == sent


def test_a_file_that_is_whole_in_the_cache_is_used(
    hub: StandIn, plain: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub.snapshot_download(REPOSITORY)
    sent = hub.weight_bytes
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    checkpoint = open_checkpoint(REPOSITORY)
    assert checkpoint.identity
    assert fetch(checkpoint, list(checkpoint.tensors)) == []
    assert_equal(checkpoint, names_of(checkpoint, 0, 4), plain)
    assert hub.weight_bytes == sent


def test_other_programs_see_a_sound_cache(hub: StandIn) -> None:
    checkpoint = open_checkpoint(REPOSITORY)
    fetch(checkpoint, names_of(checkpoint, 0, 2))
    assert ranges(hub)
    cache = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    assert not cache.warnings
    (repository,) = cache.repos
    assert not any(file.file_name.endswith("safetensors") for file in _files(repository))
    # They fetch the file that they believe absent, and it is whole then.
    path = Path(huggingface_hub.hf_hub_download(REPOSITORY, "model.safetensors"))
    assert path.read_bytes() == (hub.files / "model.safetensors").read_bytes()
    cache.delete_revisions(COMMIT).execute()
    assert not ranges(hub)


def _files(repository: huggingface_hub.CachedRepoInfo) -> list[huggingface_hub.CachedFileInfo]:
    return [file for revision in repository.revisions for file in revision.files]


@pytest.mark.parametrize("fault", ["busy", "expired"])
def test_passing_trouble_is_waited_out(hub: StandIn, plain: PreTrainedModel, fault: str) -> None:
    checkpoint = open_checkpoint(REPOSITORY)
    setattr(hub.faults, fault, 1)
    names = names_of(checkpoint, 0, 1)
    fetch(checkpoint, names)
    assert_equal(checkpoint, names, plain)


def test_a_client_sees_what_it_fetches(hub: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    huggingface_hub.utils.enable_progress_bars()  # whatever was imported and run before
    load_shell(open_checkpoint(REPOSITORY), torch.float32, lambda _: nn.Identity())
    assert f"Fetching parts of {REPOSITORY}: 100%" in capsys.readouterr().err
    load_shell(open_checkpoint(REPOSITORY), torch.float32, lambda _: nn.Identity())
    assert "Fetching parts" not in capsys.readouterr().err, "all of it is here"
