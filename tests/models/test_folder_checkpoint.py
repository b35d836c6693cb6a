"""Folders of safetensors: what is read, what is refused, and what an identity covers."""

import json
import os
import shutil
from pathlib import Path

import platformdirs
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import ARCHITECTURES, save_tiny
from transformers import AutoModelForCausalLM, GenerationConfig

from swarm.errors import BadSpanError, CheckpointError, ModelNotFoundError, NotServedError
from swarm.models import checkpoint_identity
from swarm.models.block_names import find_block_prefix, renumber
from swarm.models.checkpoint import open_checkpoint
from swarm.models.safetensors_source import INDEX_NAME, SINGLE_NAME
from swarm.spans import Span


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny("llama", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("shard_size", ["1GB", "30KB"])
def test_tensors_are_read_as_stored(tmp_path: Path, shard_size: str) -> None:
    plain = save_tiny("llama", tmp_path / "model", max_shard_size=shard_size)
    assert (tmp_path / "model" / INDEX_NAME).exists() == (shard_size == "30KB")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    expected = plain.state_dict()
    read = checkpoint.read(checkpoint.tensors)
    assert set(read) == set(expected)
    for name, tensor in read.items():
        assert torch.equal(tensor, expected[name])
        assert tensor.is_contiguous()
        assert tuple(tensor.shape) == checkpoint.tensors[name].shape
    assert checkpoint.bytes_read == sum(t.nbytes for t in expected.values())
    assert checkpoint.name == "model"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_every_dtype_keeps_its_bits(folder: Path, dtype: torch.dtype) -> None:
    tensors = open_checkpoint(str(folder)).read(open_checkpoint(str(folder)).tensors)
    stored = {name: (tensor * 100).to(dtype) for name, tensor in tensors.items()}
    stored["model.layers.0.empty.weight"] = torch.empty(0, 3, dtype=dtype)
    save_file(stored, folder / SINGLE_NAME)
    for name, tensor in open_checkpoint(str(folder)).read(stored).items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, stored[name])


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_blocks_are_found_by_name(tmp_path: Path, architecture: str) -> None:
    save_tiny(architecture, tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    stored = [checkpoint.block_tensors(Span(block, block + 1)) for block in range(4)]
    assert all(set(stored[0]) == set(other) for other in stored)
    everything = [name for block in stored for name in block.values()]
    assert sorted(everything + checkpoint.shell_tensors()) == sorted(checkpoint.tensors)
    assert len(checkpoint.shell_tensors()) <= 7
    with pytest.raises(BadSpanError, match="0:4"):
        checkpoint.block_tensors(Span(3, 5))


def test_experts_are_no_blocks_and_extra_blocks_are_no_shell() -> None:
    names = [
        f"model.layers.{block}.mlp.experts.{expert}.w{part}.weight"
        for block in range(3)
        for expert in range(8)
        for part in range(3)
    ]
    assert find_block_prefix([*names, "model.norm.weight"], 2) == "model.layers"
    assert find_block_prefix(["h.0.ln.weight", "h.1.ln.weight"], 2) == "h"
    assert renumber("h.10.ln.1.weight", "h", 8) == "h.2.ln.1.weight"


def test_identity_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "one")
    save_tiny("llama", tmp_path / "two", max_shard_size="30KB")
    one, two = (open_checkpoint(str(tmp_path / name)) for name in ("one", "two"))
    assert one.identity == two.identity
    assert [one.block_digest(i) for i in range(4)] == [two.block_digest(i) for i in range(4)]
    assert len({one.block_digest(i) for i in range(4)}) == 4
    assert 8 <= len(one.identity) <= 64
    assert len(one.block_digest(0)) == 4
    assert one.bytes_read == 0


def test_identity_tells_weights_apart(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "one")
    plain = save_tiny("llama", tmp_path / "two")
    with torch.no_grad():
        plain.model.layers[2].mlp.up_proj.weight.mul_(1.01)
    plain.save_pretrained(tmp_path / "two")
    one, two = (open_checkpoint(str(tmp_path / name)) for name in ("one", "two"))
    assert one.identity != two.identity
    assert [one.block_digest(i) == two.block_digest(i) for i in range(4)] == [
        True,
        True,
        False,
        True,
    ]


def test_identity_of_a_model_with_very_many_tensors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of them is sampled, the same part everywhere; all their names and shapes count."""
    monkeypatch.setattr(checkpoint_identity, "MAX_SAMPLES", 20)
    checkpoint = open_checkpoint(str(folder))
    source = checkpoint._source
    sampled: list[str] = []

    class Watched:
        tensors = source.tensors

        def stored_bytes(self, name: str, start: int, end: int) -> bytes:
            sampled.append(name)
            return source.stored_bytes(name, start, end) if name != changed else b"other"

    def identity() -> str:
        return checkpoint_identity.compute_identity(checkpoint.config, Watched())  # type: ignore[arg-type]

    changed = ""
    first = identity()
    assert len(set(sampled)) == len(sampled) == 20 < len(source.tensors)
    assert first == checkpoint.identity
    changed = sampled[3]
    assert identity() != first
    assert {name.rpartition("layers.")[2].partition(".")[0] for name in sampled} >= set("0123")


def test_identity_covers_settings_that_change_the_numbers(folder: Path) -> None:
    def identity(**settings: object) -> str:
        path = folder / "config.json"
        original = path.read_text()
        path.write_text(json.dumps(json.loads(original) | settings))
        try:
            return open_checkpoint(str(folder)).identity
        finally:
            path.write_text(original)

    plain = identity()
    assert identity(rms_norm_eps=1e-3) != plain
    assert identity(eos_token_id=5, dtype="bfloat16", transformers_version="0", _x=1) == plain


def test_facts_on_disk_are_forgotten_with_the_file(folder: Path, own_cache: Path) -> None:
    before = open_checkpoint(str(folder))
    old = before.identity, before.block_digest(1)
    assert any(own_cache.rglob("*.json"))
    again = open_checkpoint(str(folder))
    assert (again.identity, again.block_digest(1)) == old
    save_tiny("llama", folder, seed=1)
    os.utime(folder / SINGLE_NAME, ns=(1, 1))
    after = open_checkpoint(str(folder))
    assert after.identity != old[0]
    assert after.block_digest(1) != old[1]


def test_an_unwritable_cache_is_no_error(folder: Path, own_cache: Path) -> None:
    own_cache.write_text("a file where a folder should be")
    assert open_checkpoint(str(folder)).identity


def test_generation_settings_come_along(folder: Path) -> None:
    GenerationConfig(temperature=0.3, do_sample=True, eos_token_id=7).save_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    found = open_checkpoint(str(folder)).load_generation_config()
    assert found is not None
    assert found.temperature == plain.generation_config.temperature == 0.3


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such folder or file"):
        open_checkpoint(str(tmp_path / "absent"))
    with pytest.raises(ModelNotFoundError, match="no such folder or file"):
        open_checkpoint("./absent")


def test_no_config_and_no_weights(folder: Path) -> None:
    shutil.move(folder / "config.json", folder / "moved")
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        open_checkpoint(str(folder))
    (folder / SINGLE_NAME).unlink()
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors"):
        open_checkpoint(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="convert them to safetensors"):
        open_checkpoint(str(folder))


def test_no_tokenizer(folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="tokenizer") as caught:
        open_checkpoint(str(folder)).load_tokenizer()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("{", CheckpointError, "config.json"),
        ('{"model_type": "no_such_model"}', CheckpointError, "no_such_model"),
        ('{"model_type": "t5"}', NotServedError, "causal"),
        ('{"model_type": "gemma3"}', CheckpointError, "blocks"),
        (
            '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}',
            NotServedError,
            "never run",
        ),
    ],
)
def test_configs_that_cannot_be_served(
    folder: Path, text: str, error: type[Exception], named: str
) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(error, match=named) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


def test_too_few_blocks(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(CheckpointError, match="5 blocks"):
        open_checkpoint(str(folder))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, max_shard_size="30KB")
    absent = sorted(tmp_path.glob("model-*.safetensors"))[1]
    absent.unlink()
    with pytest.raises(CheckpointError, match=absent.name):
        open_checkpoint(str(tmp_path))


def test_an_index_cannot_lead_out_of_its_folder(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../../secret"}}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(str(folder))


def _header(entry: object) -> bytes:
    text = json.dumps({"model.norm.weight": entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


GOOD = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"1234",
        (1 << 60).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"\xff\xfe{}",
        _header(None),
        _header(GOOD | {"shape": [5]}),
        _header(GOOD | {"shape": [-4]}),
        _header(GOOD | {"shape": "4"}),
        _header(GOOD | {"data_offsets": [16, 0]}),
        _header(GOOD | {"data_offsets": [8, 24]}),
        _header(GOOD | {"data_offsets": [0]}),
        _header({"dtype": "F32"}),
    ],
)
def test_damaged_files_are_refused_at_once(folder: Path, damaged: bytes) -> None:
    (folder / SINGLE_NAME).write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(str(folder))


def test_a_file_cut_off_after_opening(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    data = (folder / SINGLE_NAME).read_bytes()
    (folder / SINGLE_NAME).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="fetch the file again"):
        checkpoint.read(checkpoint.tensors)
    with pytest.raises(CheckpointError, match="fetch the file again"):
        [checkpoint.block_digest(block) for block in range(4)]
