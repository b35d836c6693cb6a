"""Who is of one swarm is decided by the weights, not by where they lie or what they are called."""

import logging
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_pairs import greedy, joined_by, plain_model, save_tiny, some_ids

from swarm.dht.directory import Directory
from swarm.dht.joining import join_directory
from swarm.errors import CheckpointError
from swarm.models.checkpoint import open_checkpoint
from swarm.server.neighbourhood import Neighbourhood
from swarm.spans import Span
from swarm.testing import LocalSwarm
from swarm.wire.entrance import enter
from swarm.wire.identity import Identity


def generates_as(remote: Any, folder: Path) -> bool:
    ids = some_ids(9)
    return torch.equal(greedy(remote, ids, 16), greedy(plain_model(folder), ids, 16))


def test_a_folder_a_sharded_copy_and_a_hub_name_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hub_stand_in import REPOSITORY, running_hub, turn_to

    save_tiny("llama", tmp_path / "original")
    save_tiny("llama", tmp_path / "elsewhere" / "copy", max_shard_size="30KB")
    assert len(list((tmp_path / "elsewhere" / "copy").glob("*.safetensors"))) > 1
    with running_hub(tmp_path / "original") as hub:
        turn_to(hub, tmp_path / "hub", monkeypatch)
        with LocalSwarm(tmp_path / "original", "0:2") as swarm:
            swarm.start("2:3", model=REPOSITORY)
            swarm.start("3:4", model=str(tmp_path / "elsewhere" / "copy"))
            for model in (tmp_path / "elsewhere" / "copy", REPOSITORY):
                with joined_by(swarm.address, model) as remote:  # type: ignore[arg-type]
                    assert generates_as(remote, tmp_path / "original")
        huggingface_hub.close_session()


def test_other_weights_under_one_name_do_not_meet(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "one" / "tiny")
    save_tiny("llama", tmp_path / "two" / "tiny", seed=1)
    with LocalSwarm(tmp_path / "one" / "tiny", "0:4") as swarm:
        with pytest.raises(CheckpointError, match="another checkpoint as tiny"):
            swarm.start("0:4", model=str(tmp_path / "two" / "tiny"))
        with (
            joined_by(swarm.address, tmp_path / "two" / "tiny") as remote,
            pytest.raises(CheckpointError, match="load the checkpoint that it serves"),
        ):
            greedy(remote, some_ids(3), 1)


def test_two_models_in_one_swarm(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "llama")
    save_tiny("qwen2", tmp_path / "qwen", seed=2)
    with LocalSwarm(tmp_path / "llama", "0:1", "1:4") as swarm:
        first = list(swarm.servers)
        second = [swarm.start(blocks, model=str(tmp_path / "qwen")) for blocks in ("0:3", "3:4")]
        for folder, servers in ((tmp_path / "llama", first), (tmp_path / "qwen", second)):
            with joined_by(swarm.address, folder) as remote, remote.session(max_length=40) as used:
                assert generates_as(remote, folder)
                assert {hop.peer for hop in used.route} == {one.peer_id for one in servers}


def damage(folder: Path) -> None:
    """Other first values of one tensor of block 1, where no sample of the identity is taken."""
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    tensors["model.layers.1.mlp.up_proj.weight"][0] += 1.0
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_damaged_copy_is_noticed_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, bad = tmp_path / "tiny", tmp_path / "bad" / "tiny"
    save_tiny("llama", folder)
    shutil.copytree(folder, bad)
    damage(bad)
    assert open_checkpoint(str(bad)).identity == open_checkpoint(str(folder)).identity
    with LocalSwarm(folder, "0:2", "2:4", "1:3") as swarm:
        with pytest.raises(CheckpointError, match=r"block 1 .* is damaged here"):
            swarm.start("0:4", model=str(bad))

        async def believe(self: Neighbourhood, *_: object) -> None:
            """A program that does not check its own files, or two that joined at once."""

        monkeypatch.setattr(Neighbourhood, "check_digests", believe)
        # It would be the shortest route by far.
        liar = swarm.start("0:4", model=str(bad))
        with (
            caplog.at_level(logging.WARNING),
            swarm.client() as remote,
            remote.session(max_length=40) as session,
        ):
            assert generates_as(remote, folder)
            assert liar.peer_id not in {hop.peer for hop in session.route}
        (told,) = [one for one in caplog.records if "used only where" in one.message]
        assert liar.peer_id in told.message and "block 1" in told.message


def test_made_up_records_hide_no_honest_servers(tmp_path: Path) -> None:
    """Identities are free: anybody may announce more servers than there are, with other blocks."""
    folder = tmp_path / "tiny"
    save_tiny("llama", folder)
    checkpoint = open_checkpoint(str(folder)).identity

    async def announce_one(address: str) -> None:
        network = await enter(Identity.create(), initial_peers=[address], client_only=True)
        directory = Directory(await join_directory(network))
        like = (await directory.snapshot(checkpoint))[0]
        invented = {"span": Span(0, 4), "block_digests": b"fake" * 4, "peer": network.peer_id}
        assert await directory.announce(like.model_copy(update=invented))
        await directory.close()
        await network.close()

    with LocalSwarm(folder, "0:2", "2:4") as swarm:
        for _ in range(3):
            swarm.run(announce_one(swarm.address))
        swarm.start("1:3")
        with swarm.client() as remote, remote.session(max_length=40) as session:
            assert generates_as(remote, folder)
            assert {hop.peer for hop in session.route} <= {one.peer_id for one in swarm.servers}
