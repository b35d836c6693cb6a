"""A model's config, tensors and tokenizer, from a folder, a GGUF file, the hub or the default."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from swarm.errors import BadSpanError, CheckpointError, ModelNotFoundError, NotServedError
from swarm.models import embedded
from swarm.models.block_names import block_of, find_block_prefix, renumber
from swarm.models.checkpoint_identity import canonical_config, compute_identity, digest_block
from swarm.models.composite import TextSource, text_config_of
from swarm.models.disk_cache import cache_key, load_json, store_json
from swarm.models.gguf_source import GgufSource
from swarm.models.hub import fetch_repository
from swarm.models.safetensors_source import LocalShard, SafetensorsSource, ShardFile, shard_names
from swarm.models.stored_codes import take_decoding
from swarm.models.tensor_source import (
    FetchProgress,
    LazyTensor,
    ReadCounter,
    TensorInfo,
    TensorSource,
)
from swarm.models.tokenizer import load_folder_tokenizer, load_gguf_tokenizer
from swarm.spans import Span

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Checkpoint:
    """One model as it lies on disk. Opening it reads headers only."""

    def __init__(
        self,
        name: str,
        config: PretrainedConfig,
        source: TensorSource,
        place: Path,
        commit: str | None = None,
    ) -> None:
        self.name = name
        """What the user called it; for messages and displays."""
        self.config = config
        """The text decoder's config."""
        self.commit = commit
        """Of a model from the hub: the commit that it is taken at, whatever its branch does."""
        self.num_blocks = int(config.num_hidden_layers)
        self._source = source
        self._place = place
        self._counter = ReadCounter()
        self._prefix = find_block_prefix(source.tensors, self.num_blocks)
        self._of_block: dict[str, int] = {}
        for tensor in source.tensors:
            block = block_of(tensor, self._prefix)
            if block is not None:
                self._of_block[tensor] = block

    @property
    def model_class(self) -> type[Any]:
        """transformers' class `<Architecture>ForCausalLM` for this config."""
        return causal_model_class(self.config)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every stored tensor by its stored name, which transformers' loader understands."""
        return self._source.tensors

    @property
    def bytes_read(self) -> int:
        """Stored bytes of the tensors read so far; headers and digests are not counted."""
        return self._counter.total

    def block_tensors(self, span: Span) -> dict[str, str]:
        """`{name when the span's first block is number 0: stored name}`; BadSpanError."""
        self.check_span(span)
        return {
            renumber(name, self._prefix, span.start): name
            for name, block in self._of_block.items()
            if block in span
        }

    def shell_tensors(self) -> list[str]:
        """Names of all tensors outside the blocks: embeddings, final norm, head."""
        return [name for name in self._source.tensors if name not in self._of_block]

    def check_span(self, span: Span) -> None:
        """Raise BadSpanError if the model does not have these blocks."""
        if span.end > self.num_blocks:
            raise BadSpanError(
                f"{self.name} has blocks 0:{self.num_blocks}, so {span} does not exist; "
                f"choose a part of 0:{self.num_blocks}"
            )

    def fetch(self, names: Iterable[str], progress: FetchProgress) -> None:
        """Bring these tensors to this machine, if they are on the hub: no more than them.

        What was fetched is kept, also when this ends with an error; the next time goes on there.
        `progress` is called only if something is to be fetched. Raises ModelNotFoundError or
        CheckpointError, and what `progress` raises.
        """
        self._source.fetch(names, progress)

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """These tensors in memory of their own, in their stored dtype; decoded if quantized."""
        return {name: self.lazy(name)[...] for name in names}

    def lazy(self, name: str) -> LazyTensor:
        """A stand-in that transformers' loader reads when its turn comes; KeyError if unknown.

        `from_pretrained(None, state_dict={name: checkpoint.lazy(name)}, dtype=..., config=...)`
        holds one extra copy of a few tensors, not of all.
        """
        return LazyTensor(self._source, name, self._counter)

    @cached_property
    def identity(self) -> str:
        """40 hex digits that name the weights and the config; see `checkpoint_identity`.

        The first call reads a few hundred bytes of every tensor; then it is cached on disk.
        """
        key = cache_key(self._source.file_key, canonical_config(self.config))
        kept = load_json("identity", key)
        if isinstance(kept, str):
            return kept
        identity = compute_identity(self.config, self._source)
        store_json("identity", key, identity)
        return identity

    def block_digest(self, block: int) -> bytes:
        """4 bytes over all stored bytes of a block; reads the block once, then cached on disk."""
        self.check_span(Span(block, block + 1))
        key = cache_key(self._source.file_key, self._prefix, block)
        kept = load_json("digest", key)
        if isinstance(kept, str):
            return bytes.fromhex(kept)
        digest = digest_block(
            self._source, [name for name, owner in self._of_block.items() if owner == block]
        )
        store_json("digest", key, digest.hex())
        return digest

    def load_tokenizer(self, **options: Any) -> PreTrainedTokenizerBase:
        """The model's tokenizer with its chat template; ModelNotFoundError if it has none.

        `options` go to transformers' `AutoTokenizer`.
        """
        if self._place.is_file():
            return load_gguf_tokenizer(self._place, **options)
        return load_folder_tokenizer(self._place, **options)

    def load_generation_config(self) -> GenerationConfig | None:
        """The folder's generation settings; None for a GGUF file, which has none of its own."""
        if self._place.is_file():
            return None
        if (self._place / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(self._place)
        if isinstance(self._source, TextSource):
            return GenerationConfig.from_model_config(self.config)
        return GenerationConfig.from_pretrained(
            self._place, config_file_name="config.json", _from_model_config=True
        )

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r}, {self.num_blocks} blocks)"


def open_checkpoint(model: str | None = None, revision: str | None = None) -> Checkpoint:
    """Open a local folder, a GGUF file, a hub name, or (None) the embedded default model.

    Raises ModelNotFoundError, CheckpointError (damaged files) or NotServedError (no causal
    language model of transformers, or one that needs code of its own).
    """
    if model is None:
        return _open_gguf(embedded.embedded_gguf(), embedded.NAME)
    path = Path(model).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_gguf(path, path.stem)
    if not _HUB_NAME.fullmatch(model) or model.startswith("."):
        raise ModelNotFoundError(
            f"{model}: no such folder or file; give a folder with config.json and safetensors "
            "files, a GGUF file, or a Hugging Face name"
        )
    folder, shards = fetch_repository(model, revision)
    return _text_checkpoint(model, _load_config(folder), shards, folder, folder.name)


def causal_model_class(config: PretrainedConfig) -> type[Any]:
    """transformers' causal language model for a config; NotServedError if there is none."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None:
        raise NotServedError(
            f"{config.model_type} is not a causal language model of transformers; "
            "only those are served"
        )
    model_class: type[Any] = found[0] if isinstance(found, tuple) else found
    return model_class


def _open_folder(folder: Path) -> Checkpoint:
    names = shard_names(folder)
    if names is None:
        ggufs = sorted(folder.glob("*.gguf"))
        if len(ggufs) == 1:
            return _open_gguf(ggufs[0], folder.name)
        raise ModelNotFoundError(_no_weights(folder, ggufs))
    config = _load_config(folder)
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {absent[0]}, which its index names ({len(absent)} of {len(names)} "
            "files are missing); fetch the model again"
        )
    shards: list[ShardFile] = [LocalShard(folder / name) for name in names]
    return _text_checkpoint(folder.resolve().name, config, shards, folder)


def _text_checkpoint(
    name: str,
    whole: PretrainedConfig,
    shards: Sequence[ShardFile],
    folder: Path,
    commit: str | None = None,
) -> Checkpoint:
    """The folder's model, or the text decoder of one that is more."""
    config = text_config_of(whole, folder)
    causal_model_class(config)
    decode = take_decoding(config, name)
    source = decode(SafetensorsSource(shards))
    if config is whole:
        return Checkpoint(name, config, source, folder, commit)
    decoder = TextSource(source)
    if not decoder.has_head:
        config.tie_word_embeddings = True
    return Checkpoint(name, config, decoder, folder, commit)


def _no_weights(folder: Path, ggufs: list[Path]) -> str:
    if ggufs:
        return f"{folder} holds {len(ggufs)} GGUF files; name the one to use"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return (
            f"{folder} holds its weights as pickles, which can run code when they are loaded; "
            "convert them to safetensors"
        )
    return f"{folder} holds no model.safetensors, no index of such files and no GGUF file"


def _load_config(folder: Path) -> PretrainedConfig:
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder} holds no config.json, so it is not a model's folder")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0] or repr(error)
        if "trust_remote_code" in str(error):
            raise NotServedError(
                f"{folder} needs Python code of its own, which is never run; only architectures "
                "that transformers itself knows are served"
            ) from error
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {reason}") from error
    return config


def _open_gguf(path: Path, name: str) -> Checkpoint:
    source = GgufSource(path)
    settings = dict(source.config_dict)
    config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    causal_model_class(config)
    return Checkpoint(name, config, source, path)
