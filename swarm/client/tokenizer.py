"""`AutoTokenizer`: transformers' tokenizers, and those of the models that only the swarm names."""

from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

from swarm.models.checkpoint import open_checkpoint
from swarm.models.tokenizer import load_folder_tokenizer, load_gguf_tokenizer


class AutoTokenizer:
    """Loads tokenizers; takes the names that `swarm.AutoModelForCausalLM` takes."""

    def __init__(self) -> None:
        raise TypeError("use AutoTokenizer.from_pretrained(name)")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | None = None, **options: Any
    ) -> PreTrainedTokenizerBase:
        """A tokenizer of transformers, with its chat template.

        The name is a folder, a GGUF file, a hub name, or None for SmolLM2-135M-Instruct; `options`
        go to transformers' `AutoTokenizer` (`padding_side`, `revision` of a hub name, ...). Raises
        ModelNotFoundError for a folder without a tokenizer; for hub names what transformers raises.
        """
        name = pretrained_model_name_or_path
        if name is None:
            return open_checkpoint(None).load_tokenizer(**options)
        path = Path(name).expanduser()
        if path.is_file():
            return load_gguf_tokenizer(path, **options)
        if path.is_dir():
            return load_folder_tokenizer(path, **options)
        return transformers.AutoTokenizer.from_pretrained(str(name), **options)
