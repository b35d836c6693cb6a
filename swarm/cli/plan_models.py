"""Which model a plan is about: a config of one's own, or a well-known shape by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swarm.errors import ModelNotFoundError, UsageError
from swarm.routing.model_shape import ModelShape, shape_of


def _decoder(
    blocks: int, hidden: int, heads: int, kv_heads: int, inner: int, **more: object
) -> dict[str, object]:
    return {
        "num_hidden_layers": blocks,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        **more,
    }


CONFIGS: Mapping[str, Mapping[str, object]] = {
    "smollm2-135m": _decoder(30, 576, 9, 3, 1536),
    "llama-2-7b": _decoder(32, 4096, 32, 32, 11008),
    "llama-3.1-8b": _decoder(32, 4096, 32, 8, 14336),
    "llama-3.1-70b": _decoder(80, 8192, 64, 8, 28672),
    "llama-3.1-405b": _decoder(126, 16384, 128, 8, 53248),
    "qwen2.5-72b": _decoder(80, 8192, 64, 8, 29568),
    "mixtral-8x7b": _decoder(32, 4096, 32, 8, 14336, num_local_experts=8, num_experts_per_tok=2),
    "bloom-176b": _decoder(70, 14336, 112, 112, 57344, model_type="bloom"),
}
"""The figures of their published `config.json`; the rest is in `shape_of`."""
_EMBEDDED = "smollm2-135m-instruct"


def model_shape(name: str) -> ModelShape:
    """By a name of `CONFIGS`, or by a folder with a `config.json`, or by that file.

    Raises ModelNotFoundError for a name that is neither, with the names that are known; UsageError
    for a config that describes no decoder.
    """
    known = CONFIGS.get("smollm2-135m" if name.lower() == _EMBEDDED else name.lower())
    if known is not None:
        return shape_of(known, name)
    path = Path(name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ModelNotFoundError(
            f"no model is called {name!r}, and no folder with a config.json; take one of "
            f"{', '.join(CONFIGS)}, or say what its blocks are (blocks, block_gb ...)"
        )
    return shape_of(_read_config(path), path.parent.name if path.name == "config.json" else name)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} holds no config: it is not a JSON object")
    return config
