"""Models on the hub: only the needed bytes, once, in the usual cache, and what a bad hub can do."""

import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import platformdirs
import pytest
import torch
from hub_stand_in import COMMIT, REPOSITORY, StandIn, running_hub
from huggingface_hub import constants
from tiny_models import SIZES, save_tiny
from transformers import PreTrainedModel

from swarm.errors import CheckpointError, ModelNotFoundError, SwarmError
from swarm.models import hub_shard, remote_file
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.spans import Span

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
    monkeypatch.setattr(remote_file, "MOST_FAILURES", 1)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running_hub(tmp_path / "files") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield hub
        huggingface_hub.close_session()


def names_of(checkpoint: Checkpoint, start: int, end: int) -> list[str]:
    return list(checkpoint.block_tensors(Span(start, end)).values())


def stored(checkpoint: Checkpoint, names: list[str]) -> int:
    return sum(checkpoint.tensors[name].nbytes for name in names)


def fetch(checkpoint: Checkpoint, names: list[str]) -> list[tuple[int, int]]:
    """What the progress said."""
    told: list[tuple[int, int]] = []
    checkpoint.fetch(names, lambda done, total: told.append((done, total)))
    return told


def assert_equal(checkpoint: Checkpoint, names: list[str], plain: PreTrainedModel) -> None:
    expected = plain.state_dict()
    for name, tensor in checkpoint.read(names).items():
        assert torch.equal(tensor, expected[name]), name


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


def _etags(hub: StandIn) -> None:
    hub.faults.etags = ['"cdn"', '"other"']


def _linked_etags(hub: StandIn) -> None:
    hub.faults.expired, hub.faults.linked_etags = 1, ["other"]


def _size(hub: StandIn) -> None:
    hub.faults.expired, hub.faults.size_added = 1, 5


def _shifted(hub: StandIn) -> None:
    hub.faults.shifted = 4


def _no_ranges(hub: StandIn) -> None:
    hub.faults.ranges = False


def _compressed(hub: StandIn) -> None:
    hub.faults.compressed = True


def _loop(hub: StandIn) -> None:
    hub.faults.redirect = "/cdn/model.safetensors"


def _other_scheme(hub: StandIn) -> None:
    hub.faults.redirect = "file:///etc/passwd"


def _shorter(hub: StandIn) -> None:
    file = hub.files / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def _commit(hub: StandIn) -> None:
    hub.faults.expired, hub.faults.commit = 1, "f" * 40


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (_etags, "another ETag"),
        (_linked_etags, "another size or ETag"),
        (_size, "another size or ETag"),
        (_shifted, "other bytes"),
        (_no_ranges, "byte ranges.*hf download"),
        (_compressed, "compressed"),
        (_loop, "redirects more than"),
        (_other_scheme, "redirects to file"),
        (_shorter, "shorter|other bytes|instead of"),
        (_commit, "at commit ffff"),
    ],
)
def test_a_hub_that_contradicts_itself(
    hub: StandIn, fault: Callable[[StandIn], None], named: str
) -> None:
    checkpoint = open_checkpoint(REPOSITORY)
    fault(hub)
    sent = hub.weight_bytes
    with pytest.raises(CheckpointError, match=named) as caught:
        fetch(checkpoint, names_of(checkpoint, 0, 1))
        fetch(checkpoint, names_of(checkpoint, 2, 3))
    assert "\n" not in str(caught.value)
    assert REPOSITORY in str(caught.value)
    assert hub.weight_bytes - sent <= hub.whole()


@pytest.mark.parametrize("length", [1 << 40, 90_000_000, 2**64 - 1])
@pytest.mark.parametrize("size_added", [0, 200_000_000])
def test_a_header_of_absurd_length(hub: StandIn, length: int, size_added: int) -> None:
    file = hub.files / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    hub.faults.size_added = size_added
    with pytest.raises(SwarmError, match=r"org/tiny/model\.safetensors") as caught:
        open_checkpoint(REPOSITORY)
    assert "\n" not in str(caught.value)
    assert hub.weight_bytes <= hub.whole()


def _no_weights(hub: StandIn) -> None:
    (hub.files / "model.safetensors").unlink()


def _gated(hub: StandIn) -> None:
    hub.faults.gated = True


def _private(hub: StandIn) -> None:
    hub.faults.token = "hf_of_others"


@pytest.mark.parametrize(
    ("fault", "name", "revision", "named"),
    [
        (_no_weights, REPOSITORY, None, "no safetensors"),
        (_gated, REPOSITORY, None, "consent"),
        (_private, REPOSITORY, None, "no such model"),
        (lambda hub: None, "org/absent", None, "no such model"),
        (lambda hub: None, REPOSITORY, "absent", "revision"),
    ],
)
def test_refusals_in_one_line(
    hub: StandIn, fault: Callable[[StandIn], None], name: str, revision: str | None, named: str
) -> None:
    fault(hub)
    with pytest.raises(ModelNotFoundError, match=named) as caught:
        open_checkpoint(name, revision)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_no_hub_at_all(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelNotFoundError, match=r"HF_HUB_OFFLINE|cannot be reached"):
        open_checkpoint(REPOSITORY)


def test_no_room_on_the_disk(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(REPOSITORY)
    free = hub_shard.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(hub_shard.shutil, "disk_usage", lambda path: free)
    with pytest.raises(CheckpointError, match="free some space"):
        fetch(checkpoint, names_of(checkpoint, 0, 1))
