"""What a checkpoint is, wherever its files lie.

Two copies of one model have the same identity whatever their folders, shards and file names. It
covers what decides the numbers: the config's settings and every stored tensor's name, shape, dtype
and a sample of its bytes. A sample tells a fine-tuned model from its base for the price of at most
two thousand small reads; it does not prove that all bytes are equal, which is what `digest_block`
is for. Neither protects against lies.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from transformers import PretrainedConfig

from swarm.models.tensor_source import TensorInfo, TensorSource, chunks

SAMPLE_BYTES = 256
MAX_SAMPLES = 2048
"""Of models with more tensors (experts, each stored by itself) so many are sampled."""
SAMPLE_THREADS = 8
"""Samples of files that are elsewhere cost a round trip each."""
IDENTITY_BYTES = 20
DIGEST_BYTES = 4

_NOT_IDENTITY = {
    "architectures",
    "auto_map",
    "bos_token_id",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "label2id",
    "pad_token_id",
    "problem_type",
    "torch_dtype",
    "transformers_version",
    "unk_token_id",
    "use_cache",
}
"""Settings that do not change what the blocks compute."""


def canonical_config(config: PretrainedConfig) -> str:
    """The settings that differ from the architecture's defaults, as sorted JSON."""
    return json.dumps(_strip(config.to_diff_dict()), sort_keys=True, default=str)


def _strip(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _strip(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if not key.startswith("_") and key not in _NOT_IDENTITY
    }


def compute_identity(config: PretrainedConfig, source: TensorSource) -> str:
    """40 hex digits. The sample of a tensor is the `SAMPLE_BYTES` in its middle, or all of it.

    Where there are more than `MAX_SAMPLES` tensors, those whose names have the least hashes are
    sampled: a part of every kind of tensor.
    """
    digest = hashlib.blake2b(canonical_config(config).encode(), digest_size=IDENTITY_BYTES)
    tensors = sorted(source.tensors.items())
    sampled = set(sorted(source.tensors, key=_name_hash)[:MAX_SAMPLES])

    def sample(entry: tuple[str, TensorInfo]) -> bytes:
        name, info = entry
        if name not in sampled:
            return b""
        size = min(SAMPLE_BYTES, info.nbytes)
        start = (info.nbytes - size) // 2
        return source.stored_bytes(name, start, start + size)

    with ThreadPoolExecutor(SAMPLE_THREADS) as threads:
        for (name, info), stored in zip(tensors, threads.map(sample, tensors), strict=True):
            digest.update(f"\n{name} {info.dtype} {list(info.shape)}\n".encode())
            digest.update(stored)
    return digest.hexdigest()


def _name_hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def digest_block(source: TensorSource, names: Iterable[str]) -> bytes:
    """4 bytes over the names, shapes, dtypes and all stored bytes of one block's tensors."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(names):
        info = source.tensors[name]
        digest.update(f"\n{name} {info.dtype} {list(info.shape)}\n".encode())
        for start, end in chunks(info.nbytes):
            digest.update(source.stored_bytes(name, start, end))
    return digest.digest()
