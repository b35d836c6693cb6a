"""The text decoder of a checkpoint that holds more: models of text and images, as Gemma 3 or Llava.

Their config has the decoder's in `text_config`, and their tensors lie beside those of the image
tower, under names that depend on when and by what they were saved. Here the decoder looks like a
checkpoint of its own; nothing else is ever read.
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from transformers import PretrainedConfig

from swarm.errors import NotServedError
from swarm.models.tensor_source import FetchProgress, TensorInfo, TensorSource

_DECODERS = frozenset({"language_model", "text_model"})
"""What composite models call their decoder."""
_HEAD = "lm_head."
_OF_ALL = ("dtype", "quantization_config")
"""Settings that composite configs may have for all their parts."""


def text_config_of(config: PretrainedConfig, where: object) -> PretrainedConfig:
    """The decoder's own config, or `config` itself if there is nothing else; NotServedError.

    `where` is for the message.
    """
    decoder = config.get_text_config(decoder=True)
    if decoder is config:
        return config
    if getattr(config, "text_config", None) is not decoder:
        raise NotServedError(
            f"{where}: {config.model_type} is not a causal language model of transformers, nor one "
            "with something beside it; only those are served"
        )
    text = copy.deepcopy(decoder)
    for name in _OF_ALL:
        if getattr(text, name, None) is None and getattr(config, name, None) is not None:
            setattr(text, name, getattr(config, name))
    return text


class TextSource:
    """The decoder's tensors of a composite checkpoint, named as if it had been saved by itself."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._stored = {
            name: stored for stored in source.tensors if (name := _name_alone(stored)) is not None
        }
        self._tensors = {name: source.tensors[stored] for name, stored in self._stored.items()}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    @property
    def file_key(self) -> str:
        return self._source.file_key

    @property
    def has_head(self) -> bool:
        return any(name.startswith(_HEAD) for name in self._stored)

    def fetch(self, names: Iterable[str], progress: FetchProgress) -> None:
        self._source.fetch([self._stored[name] for name in names], progress)

    def read(self, name: str) -> torch.Tensor:
        return self._source.read(self._stored[name])

    def stored_bytes(self, name: str, start: int, end: int) -> bytes:
        return self._source.stored_bytes(self._stored[name], start, end)


def _name_alone(stored: str) -> str | None:
    """`model.layers.0` for `language_model.model.layers.0`, `model.language_model.layers.0` and the
    like; None for what is not the decoder's."""
    if stored.startswith(_HEAD):
        return stored
    parts = stored.split(".")
    outer = parts[:2]
    if not _DECODERS.intersection(outer):
        return None
    rest = [part for part in outer if part not in _DECODERS and part != "model"] + parts[2:]
    if rest[0] in ("model", "lm_head"):
        return ".".join(rest)
    return ".".join(["model", *rest])
