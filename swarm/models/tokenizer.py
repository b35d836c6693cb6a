"""Tokenizers, of folders and of GGUF files."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from swarm.errors import ModelNotFoundError
from swarm.models.disk_cache import cache_folder, cache_key, file_key


def load_folder_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer files in a folder; ModelNotFoundError if there are none.

    `options` go to transformers' `AutoTokenizer`.
    """
    settings = {"local_files_only": True, "trust_remote_code": False} | options
    try:
        return AutoTokenizer.from_pretrained(folder, **settings)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelNotFoundError(f"{folder} holds no tokenizer to load ({reason})") from error


def load_gguf_tokenizer(path: Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer inside a GGUF file, with its chat template.

    Converting it takes seconds, so it is kept in the user's cache folder in tokenizers' own format.
    """
    key = cache_key(file_key(path), transformers.__version__)
    kept = cache_folder("tokenizers", key)
    if (kept / "tokenizer_config.json").is_file():
        return load_folder_tokenizer(kept, **options)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    _keep(tokenizer, kept)
    if options:  # not kept
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, **options)
    return tokenizer


def _keep(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save whole or not at all; a cache folder that cannot be written only costs time."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    except OSError:
        return
    try:
        tokenizer.save_pretrained(temporary)
        temporary.rename(folder)
    except OSError:  # full, or another process was first
        shutil.rmtree(temporary, ignore_errors=True)
