"""A hub that contradicts itself, lacks something or is not there: one line says so."""

import struct
from collections.abc import Callable

import pytest
from hub_parts import fetch, names_of
from hub_stand_in import REPOSITORY, StandIn
from huggingface_hub import constants

from swarm.errors import CheckpointError, ModelNotFoundError, SwarmError
from swarm.models import hub_shard
from swarm.models.checkpoint import open_checkpoint


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
