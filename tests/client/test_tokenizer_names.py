"""`swarm.AutoTokenizer` takes the names that the model class takes."""

import pytest
import transformers

import swarm
from swarm.errors import ModelNotFoundError
from swarm.models.embedded import embedded_gguf

TEXT = "The printing press"


@pytest.fixture(scope="module")
def default():
    return swarm.AutoTokenizer.from_pretrained()


def test_the_default_model(default):
    assert default.decode(default(TEXT).input_ids) == TEXT
    assert default.chat_template


def test_a_gguf_file_with_options(default):
    tokenizer = swarm.AutoTokenizer.from_pretrained(embedded_gguf(), padding_side="left")
    assert tokenizer(TEXT).input_ids == default(TEXT).input_ids
    assert tokenizer.padding_side == "left"


def test_a_folder_as_transformers_reads_it(default, tmp_path):
    default.save_pretrained(tmp_path)
    ours = swarm.AutoTokenizer.from_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(ours) is type(theirs)
    assert ours(TEXT).input_ids == theirs(TEXT).input_ids


def test_other_names_go_to_transformers(monkeypatch):
    asked = []
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda name, **options: asked.append((name, options)),
    )
    swarm.AutoTokenizer.from_pretrained("someone/some-model", revision="main")
    assert asked == [("someone/some-model", {"revision": "main"})]


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ModelNotFoundError, match="tokenizer"):
        swarm.AutoTokenizer.from_pretrained(tmp_path)
